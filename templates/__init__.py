"""Starter jobs and their data, read with importlib.resources."""
