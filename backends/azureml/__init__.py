"""Azure Machine Learning as a backend: one command job a job, everything else in one datastore."""

from backends.azureml.backend import AzureMLBackend

__all__ = ["AzureMLBackend"]
