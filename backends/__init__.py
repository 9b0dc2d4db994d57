"""Where a job runs: one module a backend behind the Protocol in base.py."""
