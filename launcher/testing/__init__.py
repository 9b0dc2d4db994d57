"""For authors of backends: subclass BackendContract in a test file, fill in its hooks, run pytest.

    class TestMine(BackendContract):
        model = "models/tiny"   # something that trains in seconds where the jobs run

        def make_backend(self, home):
            return MyBackend(home)

        def in_place(self, backend, plan):
            return {blob.name: blob.generation for blob in ...}

The suite submits three small jobs (one ends well, one fails, one is cancelled), each once a class. This is the
only part of the distribution that needs pytest. RenderContract is the half before anything is sent.
"""

import pytest

pytest.register_assert_rewrite("launcher.testing.contract")

from launcher.testing.contract import BackendContract, RenderContract  # noqa: E402 - after its asserts are to be rewritten

__all__ = ["BackendContract", "RenderContract"]
