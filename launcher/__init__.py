"""What the user touches: the command line, the job file, the bundle, a job's life and its record."""

__version__ = "0.1.0"
