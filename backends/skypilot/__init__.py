"""SkyPilot: any GPU cloud, Kubernetes or Slurm."""

from backends.skypilot.backend import SkyPilotBackend

__all__ = ["SkyPilotBackend"]
