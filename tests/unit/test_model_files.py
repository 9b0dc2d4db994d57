"""A model's small files: what is here is taken, the hub is asked once, and no token goes astray."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cost import model_files
from cost.model_files import find_files
from tests.loopback import Loopback
from train_entry.config import Model

NAMES = ("tokenizer.json", "tokenizer_config.json")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "x" * 20


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Loopback]:
    """A hub on this machine, and no token, cache or login but the test's."""
    server = Loopback()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "*")
    yield server
    server.close()


def found(tmp_path: Path, model: str = "org/m", revision: str | None = None) -> model_files.Found:
    return find_files(Model(id=model, revision=revision), NAMES, folder=tmp_path, cache=tmp_path / "cache")


def offer(hub: Loopback, revision: str = "main") -> None:
    hub.answers[f"/org/m/resolve/{revision}/tokenizer.json"] = (200, {"a": 1})


def test_a_folder_of_the_users_is_read_where_it_is(hub: Loopback, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/tokenizer.json").write_text("{}")
    assert found(tmp_path, "mine").files == {"tokenizer.json": tmp_path / "mine/tokenizer.json"}
    (tmp_path / "mine/tokenizer.json").unlink()
    assert found(tmp_path, "mine").why_not == "mine has no tokenizer.json"
    assert hub.seen == []


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_what_the_hubs_own_library_has_fetched_is_taken(
    hub: Loopback, tmp_path: Path, revision: str | None
) -> None:
    place = tmp_path / "hf/hub/models--org--m"
    snapshot = place / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(COMMIT)
    (snapshot / "tokenizer.json").write_text("{}")
    assert found(tmp_path, revision=revision).files == {"tokenizer.json": snapshot / "tokenizer.json"}
    assert hub.seen == []


def test_the_hub_is_asked_once_and_the_copy_is_used_without_it(
    hub: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(hub)
    first = found(tmp_path)
    assert json.loads(first.files["tokenizer.json"].read_text()) == {"a": 1}
    assert list(first.files) == ["tokenizer.json"], "a file that the repository lacks is not made up"
    assert len(hub.seen) == 2
    assert found(tmp_path) == first
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert found(tmp_path) == first
    assert len(hub.seen) == 2


def test_a_named_revision_and_a_uri_of_the_hub_are_asked_for(hub: Loopback, tmp_path: Path) -> None:
    offer(hub, "v2")
    assert found(tmp_path, "hf://org/m@v2").files
    assert hub.seen[0][1] == "/org/m/resolve/v2/tokenizer.json"


def test_an_old_copy_of_a_branch_is_asked_for_again_and_stays_when_the_hub_is_gone(
    hub: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(hub)
    first = found(tmp_path)
    monkeypatch.setattr(model_files, "FRESH_S", 0.0)
    hub.answers["/org/m/resolve/main/tokenizer.json"] = (200, {"a": 2})
    assert json.loads(found(tmp_path).files["tokenizer.json"].read_text()) == {"a": 2}
    hub.answers["/org/m/resolve/main/tokenizer.json"] = (500, {})
    assert found(tmp_path) == first


def test_a_copy_of_a_commit_is_never_old(hub: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(hub, COMMIT)
    assert found(tmp_path, revision=COMMIT).files
    asked = len(hub.seen)
    monkeypatch.setattr(model_files, "FRESH_S", 0.0)
    assert found(tmp_path, revision=COMMIT).files
    assert len(hub.seen) == asked


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "gated or does not exist"), (403, "HF_TOKEN"), (404, "no tokenizer.json"), (500, "500")],
)
def test_a_refusal_is_a_reason_and_is_not_asked_for_at_every_preview(
    hub: Loopback, tmp_path: Path, status: int, says: str
) -> None:
    for name in NAMES:
        hub.answers[f"/org/m/resolve/main/{name}"] = (status, {})
    assert says in (found(tmp_path).why_not or "")
    asked = len(hub.seen)
    assert says in (found(tmp_path).why_not or "")
    assert len(hub.seen) == asked


def test_a_token_set_since_then_is_tried_at_once(
    hub: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.answers["/org/m/resolve/main/tokenizer.json"] = (401, {})
    assert not found(tmp_path).files
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    offer(hub)
    assert found(tmp_path).files
    assert hub.seen[-1][2]["authorization"] == f"Bearer {TOKEN}"


def test_the_login_of_the_hubs_own_program_counts(hub: Loopback, tmp_path: Path) -> None:
    offer(hub)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/token").write_text(f"{TOKEN}\n")
    assert found(tmp_path).files
    assert hub.seen[0][2]["authorization"] == f"Bearer {TOKEN}"


def test_the_token_is_neither_kept_nor_logged_nor_sent_to_another_host(
    hub: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    elsewhere = Loopback()
    try:
        # The same machine by another name is another host.
        elsewhere.url = elsewhere.url.replace("127.0.0.1", "localhost")
        hub.url = elsewhere.url
        hub.answers["/org/m/resolve/main/tokenizer.json"] = (302, b"")
        elsewhere.answers["/elsewhere"] = (200, {"a": 3})
        with caplog.at_level(logging.DEBUG):
            first = found(tmp_path)
    finally:
        elsewhere.close()
    assert json.loads(first.files["tokenizer.json"].read_text()) == {"a": 3}
    assert hub.seen[0][2]["authorization"] == f"Bearer {TOKEN}"
    assert elsewhere.seen and "authorization" not in elsewhere.seen[0][2]
    assert TOKEN not in caplog.text
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert kept and not any(TOKEN.encode() in path.read_bytes() for path in kept)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "LAUNCH_OFFLINE"])
def test_offline_asks_nobody(
    hub: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    assert "not on this machine" in (found(tmp_path).why_not or "")
    assert hub.seen == []


def test_a_hub_that_says_nothing_is_not_waited_for_long(
    hub: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "READ_TIMEOUT_S", 0.2)
    hub.silent = True
    assert "ReadTimeout" in (found(tmp_path).why_not or "")
    asked = len(hub.seen)
    assert not found(tmp_path).files
    assert len(hub.seen) == asked == 1


def test_no_network_is_a_reason(hub: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Loopback()
    gone.close()
    monkeypatch.setenv("HF_ENDPOINT", gone.url)
    assert "can't be reached" in (found(tmp_path).why_not or "")


def test_a_file_that_is_too_large_is_not_kept(
    hub: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "MOST_BYTES", 4)
    offer(hub)
    assert "larger than" in (found(tmp_path).why_not or "")
    assert not list((tmp_path / "cache").rglob("tokenizer.json"))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("s3://bucket/m", "read where the job runs"),
        ("./gone/m/x", "there is no folder"),
        ("../../etc", "there is no folder"),
        ("embedded:nothing", "not unpacked"),
    ],
)
def test_what_is_no_hub_model_is_not_asked_for(hub: Loopback, tmp_path: Path, model: str, says: str) -> None:
    assert says in (found(tmp_path, model).why_not or "")
    assert hub.seen == []


def test_a_damaged_note_of_what_was_asked_is_asked_anew(hub: Loopback, tmp_path: Path) -> None:
    offer(hub)
    found(tmp_path)
    [note] = (tmp_path / "cache").rglob(model_files.ASKED)
    note.write_text("{")
    asked = len(hub.seen)
    assert found(tmp_path).files
    assert len(hub.seen) > asked


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_cannot_be_written_to_ends_nothing(hub: Loopback, tmp_path: Path) -> None:
    offer(hub)
    (tmp_path / "cache").mkdir(mode=0o500)
    assert found(tmp_path).why_not
