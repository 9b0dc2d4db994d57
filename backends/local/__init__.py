"""This machine as a backend: a training environment, a detached process, a folder a job."""

from backends.local.backend import LocalBackend

__all__ = ["LocalBackend"]
