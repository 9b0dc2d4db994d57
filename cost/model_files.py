"""Where a model's small files are (config.json, tokenizer.json): on this machine, or asked of the hub once.

Nothing here needs the training environment: plain files, the hub's cache as its library lays it out, and HTTPS.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from train_entry.config import Model
from train_entry.embedded import MODELS, PREFIX
from train_entry.failure import write_atomic
from train_entry.hub import kept_folder, on_the_hub

if TYPE_CHECKING:
    import httpx

ENDPOINT = "https://huggingface.co"
"""HF_ENDPOINT wins over it, as in the hub's own library."""
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 3.0, 10.0
MOST_BYTES = 64 * 2**20
FRESH_S = 7 * 86400.0
"""How long a copy of a branch's file counts before the hub is asked again; that of a commit counts for ever."""
REFUSED_S = 600.0
"""How long an answer that was none counts: a preview must not wait for a dead network at every call."""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
ASKED = "asked.json"


@dataclass(frozen=True, kw_only=True)
class Found:
    """Files by name; `why_not` says why the first one wanted is not there."""

    files: Mapping[str, Path] = field(default_factory=dict)
    why_not: str | None = None


def find_files(model: Model, names: Sequence[str], *, folder: Path, cache: Path) -> Found:
    """The model's files of these names; the first is needed, the others need not exist.

    Looked for in the local or embedded folder, the hub library's cache, copies under `cache`, and on the hub
    itself unless HF_HUB_OFFLINE or LAUNCH_OFFLINE forbids it. Never raises: without a file there is a reason.
    """
    if model.id.startswith(PREFIX):
        known = MODELS.get(name := model.id.removeprefix(PREFIX))
        place = cache / "models" / f"{name}-{known.version}" if known else None
        return _in_folder(place, names, f"{model.id} is not unpacked on this machine yet (its first run does it)")
    model = on_the_hub(model)
    if "://" in model.id:
        return Found(why_not=f"{model.id} is read where the job runs")
    if (folder / model.id).is_dir():
        return _in_folder(folder / model.id, names, f"{model.id} has no {names[0]}")
    if not HUB_ID.fullmatch(model.id):
        return Found(why_not=f"there is no folder {model.id}")
    found = _in_folder(_hub_snapshot(model), names, "")
    return found if found.files else _copies(model, names, cache)


def _in_folder(place: Path | None, names: Sequence[str], why_not: str) -> Found:
    if place is None or not (place / names[0]).is_file():
        return Found(why_not=why_not)
    return Found(files={name: place / name for name in names if (place / name).is_file()})


def _hub_snapshot(model: Model) -> Path | None:
    """Where the hub's library keeps this revision: refs/NAME names a commit, snapshots/COMMIT has its files."""
    root = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    place = Path(root) if root else _hf_home() / "hub"
    place = place.expanduser() / f"models--{model.id.replace('/', '--')}"
    revision = model.revision or "main"
    try:
        commit = (place / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    return place / "snapshots" / commit


def _hf_home() -> Path:
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "huggingface"


def _copies(model: Model, names: Sequence[str], cache: Path) -> Found:
    """Copies made before, brought up to date; old ones count where the hub can't be asked."""
    place = kept_folder(cache / "hub", model)
    asked = _asked(place)
    due = [n for n in names if not _counts(asked.get(n), model, (place / n).is_file())]
    why_not = None
    if due and _offline():
        why_not = f"{model.id} is not on this machine, and HF_HUB_OFFLINE or LAUNCH_OFFLINE keeps from asking"
    elif due:
        why_not = _download(model, due, place, asked)
    files = {name: place / name for name in names if (place / name).is_file()}
    if names[0] in files:
        return Found(files=files)
    return Found(why_not=why_not or str(asked.get(names[0], {}).get("why") or f"{model.id} has no {names[0]}"))


def _asked(place: Path) -> dict[str, dict[str, object]]:
    try:
        found = json.loads((place / ASKED).read_text(encoding="utf-8"))
        return {str(k): dict(v) for k, v in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _counts(answer: Mapping[str, object] | None, model: Model, there: bool) -> bool:
    """Is what the hub said last still good enough?"""
    if answer is None or answer.get("endpoint") != _endpoint():
        return False
    try:
        age = time.time() - float(str(answer["time"]))
    except (LookupError, ValueError):
        return False
    if answer.get("why"):
        return 0 <= age < REFUSED_S and answer.get("token") == bool(_token())
    return (there or answer.get("absent") is True) and (
        bool(COMMIT.fullmatch(model.revision or "")) or age < FRESH_S
    )


def _download(model: Model, names: Sequence[str], place: Path, asked: dict[str, dict[str, object]]) -> str | None:
    """Fetch the files into `place`, each whole or not at all; why the hub does not give them, if so."""
    import httpx

    token, why_not = _token(), None
    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # httpx does not send the token to another host that a redirect names.
    with httpx.Client(timeout=timeout, headers=headers, follow_redirects=True) as client:
        for name in names:
            note: dict[str, object] = {"time": time.time(), "endpoint": _endpoint(), "token": bool(token)}
            asked[name] = note
            url = f"{_endpoint()}/{model.id}/resolve/{model.revision or 'main'}/{name}"
            content, why = _get(client, url, model.id)
            if why:
                note["why"] = why_not = why
                asked.update(
                    dict.fromkeys(names[names.index(name) :], note)
                )  # it would say the same of the others
                break
            note["absent"] = content is None
            if content is not None:
                _write(place / name, content)
    _write(place / ASKED, json.dumps(asked).encode())
    return why_not


def _get(client: httpx.Client, url: str, model_id: str) -> tuple[bytes | None, str | None]:
    """(the file, None), (None, None) where the repository has none, (None, why it was not given)."""
    import httpx

    content = bytearray()
    try:
        with client.stream("GET", url) as response:
            code = response.headers.get("X-Error-Code")
            if response.status_code in (401, 403) or code in ("GatedRepo", "RepoNotFound"):
                return None, f"the hub does not give {model_id}: it is gated or does not exist (token: HF_TOKEN)"
            if response.status_code == 404:
                return None, None
            if response.status_code != 200:
                return None, f"the hub answered {response.status_code} for {model_id}"
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MOST_BYTES:
                    return None, f"a file of {model_id} is larger than {MOST_BYTES >> 20} MiB"
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        return None, f"the hub can't be reached for {model_id} ({type(exc).__name__})"
    return bytes(content), None


def _write(path: Path, content: bytes) -> None:
    """Put the file there; a cache that can't be written to costs time, nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError:
        return


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def _offline() -> bool:
    wanted = (os.environ.get(n, "") for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "LAUNCH_OFFLINE"))
    return any(value.upper() in ("1", "ON", "YES", "TRUE") for value in wanted)


def _token() -> str | None:
    """HF_TOKEN, or what `hf auth login` left; it goes into a request's header and nowhere else."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if value := os.environ.get(name, "").strip():
            return value
    try:
        path = os.environ.get("HF_TOKEN_PATH")
        text = (Path(path) if path else _hf_home() / "token").expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return text.strip() or None
