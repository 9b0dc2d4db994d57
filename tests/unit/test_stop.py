"""Long work and a stop that comes meanwhile: what is done is done."""

from __future__ import annotations

import threading

import pytest

from train_entry import stop
from train_entry.stop import Stopped, unless_stopped


def stopping() -> None:
    raise Stopped("signal")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "CHECK_S", 0.01)
    monkeypatch.setattr(stop, "_end_children", lambda: None)  # this process may have others


def test_work_that_ends_while_it_may_tidy_up_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    def work() -> str:
        assert asked.wait(60)
        return "done"

    def check() -> None:
        asked.set()
        stopping()

    monkeypatch.setattr(stop, "TIDY_S", 60)
    assert unless_stopped(work, check) == "done"


def test_work_that_goes_on_or_fails_then_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    monkeypatch.setattr(stop, "TIDY_S", 0.01)
    with pytest.raises(Stopped, match="signal"):
        unless_stopped(lambda: end.wait(60), stopping)

    end.set()
    asked = threading.Event()

    def fail() -> None:
        asked.wait(60)
        raise OSError("its download was ended")

    def check() -> None:
        asked.set()
        stopping()

    monkeypatch.setattr(stop, "TIDY_S", 60)
    with pytest.raises(Stopped, match="signal"):
        unless_stopped(fail, check)
