"""Amazon SageMaker training as a backend: one CreateTrainingJob a job, everything else in one bucket."""

from backends.sagemaker.backend import SageMakerBackend

__all__ = ["SageMakerBackend"]
