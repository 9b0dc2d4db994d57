"""Google Vertex AI custom training as a backend: one CustomJob a job, everything else in one bucket."""

from backends.vertex.backend import VertexBackend

__all__ = ["VertexBackend"]
