"""Judging models beside the job itself."""
