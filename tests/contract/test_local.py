"""The backend contract on this machine, with real training processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from backends.base import Backend, Plan
from backends.local import LocalBackend
from launcher.testing import BackendContract


class TestLocal(BackendContract):
    sdk = ("torch", "keyring")

    @pytest.fixture(scope="class")
    @classmethod
    def ready(cls, tiny_model: Path) -> None:
        cls.model = str(tiny_model)

    def make_backend(self, home: Path) -> Backend:
        return LocalBackend(home)

    def in_place(self, backend: Backend, plan: Plan) -> Mapping[str, object]:
        folder = backend._jobs / plan.token / "input"  # type: ignore[attr-defined]
        return {
            path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in folder.rglob("*")
            if path.is_file()
        }
