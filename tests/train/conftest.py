"""Fixtures of the training process's tests; they run in the training environment, not in the launcher's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

try:
    import torch  # noqa: F401
except ModuleNotFoundError:
    collect_ignore_glob = ["test_*.py"]
else:
    sys.path.insert(0, str(Path(__file__).parent))
    import tiny

    from tests.warm_starts import WarmStarts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("train")
            # Third-party warnings are not ours to fix.
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    yield
    tiny.end_all()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session", autouse=True)
def warm_starts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Jobs start without the imports of the training process, unless they are started with tiny.COLD."""
    forking = WarmStarts(sys.executable, tmp_path_factory.mktemp("warm"))
    tiny.WARM.update(forking.environment(True))
    yield
    forking.close()


@pytest.fixture
def new_job(tmp_path: Path, model_folder: Path) -> Callable[..., Any]:
    """A factory: sections of job.json -> a Job in a folder of its own."""
    made = 0

    def make(rows: int | list[Any] = 24, held_out: int = 8, **sections: Any) -> tiny.Job:
        nonlocal made
        made += 1
        data = tiny.rows(rows) if isinstance(rows, int) else rows
        return tiny.Job(
            tmp_path / f"job{made}", tiny.job_dict(model_folder, **sections), data, tiny.rows(held_out, seed=1)
        )

    return make
