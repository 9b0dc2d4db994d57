"""A job whose launcher did not hear that it had started, at a backend that shows it only later: real processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backends.base import JobRef
from backends.local import LocalBackend
from launcher.cli import cli
from launcher.client import Client
from launcher.errors import LaunchError, UnreachableError
from tests.unit.local_jobs import planned, until


class Hidden:
    """Until `shown`, the backend does not know the job that it has started; `down`: it can't be asked."""

    shown = down = False


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> Hidden:
    find, discover, now = LocalBackend.find, LocalBackend.discover, Hidden()

    def late(real: Callable[..., Any], nothing: Any) -> Callable[..., Any]:
        def asked(*args: Any, **named: Any) -> Any:
            if now.down:
                raise UnreachableError("no answer", "later")
            return real(*args, **named) if now.shown else nothing

        return asked

    monkeypatch.setattr(LocalBackend, "find", late(find, None))
    monkeypatch.setattr(LocalBackend, "discover", late(discover, []))
    return now


@pytest.fixture
def buried(client: Client, tmp_path: Path, hidden: Hidden, monkeypatch: pytest.MonkeyPatch) -> JobRef:
    """A job that sleeps, and of which the record says that nothing runs."""
    plan = planned(client, tmp_path / "project")
    stage, submit = LocalBackend.stage, LocalBackend.submit

    def sleeping(self: LocalBackend, plan: Any, progress: Any) -> None:
        stage(self, plan, progress)
        code = client.home / "jobs" / plan.token / "input/code/train_entry/__main__.py"
        code.write_text("import time\ntime.sleep(60)\n")

    def interrupted(self: LocalBackend, plan: Any) -> JobRef:
        submit(self, plan)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, "stage", sleeping)
        patch.setattr(LocalBackend, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.submit(plan, lambda line: None)
    found = client.get(plan.plan.token)
    assert (found.state, found.ref) == ("FAILED", None)
    assert f"launch show {found.id}" in (found.reason or "")
    return JobRef("local", "localhost", found.id)


def test_it_is_known_again_when_it_is_looked_at(client: Client, hidden: Hidden, buried: JobRef) -> None:
    hidden.shown = True
    found = client.get(buried.id)
    assert (found.ref, found.reason, found.ended) == (str(buried), None, None)
    assert found.state in ("STARTING", "RUNNING")


def test_it_is_an_orphan_and_a_discovery(client: Client, hidden: Hidden, buried: JobRef) -> None:
    hidden.shown = True
    orphans, _ = client.orphans(["local"])
    assert [one.id for one in orphans] == [buried.id]
    assert client.discover(["local"]) == (1, {})
    (listed,) = client.jobs()
    assert listed.ref == str(buried) and not listed.over
    assert client.orphans(["local"]) == ([], {})
    assert client.discover(["local"]) == (0, {})


def test_cancel_ends_it(client: Client, hidden: Hidden, buried: JobRef) -> None:
    hidden.shown = True
    done = CliRunner().invoke(cli, ["cancel", buried.id, "--no-wait"])
    assert "over already" not in done.output
    until(lambda: client.get(buried.id).over)
    assert client.get(buried.id).state != "SUCCEEDED"


def test_list_says_what_to_type(client: Client, buried: JobRef) -> None:
    listed = CliRunner().invoke(cli, ["list"])
    assert f"launch show {buried.id}" in listed.output


def test_it_is_shown_while_its_backend_is_down_and_cancel_says_so(
    client: Client, hidden: Hidden, buried: JobRef
) -> None:
    hidden.down = True
    assert client.get(buried.id).state == "FAILED"
    with pytest.raises(UnreachableError):
        client.cancel(buried.id)


def test_a_slow_launcher_that_was_taken_for_dead_still_notes_its_answer(
    client: Client, tmp_path: Path, hidden: Hidden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two machines that share the folder take each other's launchers."""
    plan, submit = planned(client, tmp_path / "project"), LocalBackend.submit

    def slow(self: LocalBackend, plan: Any) -> JobRef:
        client._store.update(plan.token, submitter=None)
        assert Client(client.home).get(plan.token).state == "FAILED"
        return submit(self, plan)

    monkeypatch.setattr(LocalBackend, "submit", slow)
    assert client.submit(plan, lambda line: None).ref == f"local://localhost/{plan.plan.token}"


def test_a_job_that_was_refused_says_only_that(client: Client, tmp_path: Path, monkeypatch: Any) -> None:
    def refused(self: LocalBackend, plan: Any) -> JobRef:
        raise LaunchError("no quota is left")

    monkeypatch.setattr(LocalBackend, "submit", refused)
    plan = planned(client, tmp_path / "project")
    with pytest.raises(LaunchError, match="no quota"):
        client.submit(plan, lambda line: None)
    assert client.get(plan.plan.token).reason == "no quota is left"
