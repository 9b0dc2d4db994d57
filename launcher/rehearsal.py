"""A job rehearsed on this machine: the same bundle and plan inside the container that a vendor would put round it.

Nothing is sent and nothing is paid. The process gets the vendor's environment, files and folders under a folder of
this machine; an interruption takes away everything but what the vendor keeps, and the job must go on from that.
Of several nodes each has a folder of its own but for what is kept, and they meet over gloo on this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from backends.base import ContainerContract, Plan, Progress, Rehearsable
from launcher.errors import ConfigError, JobFailedError
from launcher.events import Event, from_line
from launcher.home import cache
from launcher.live import as_words

PREEMPTED = 143
TAIL = 12
TOGETHER_S = 60.0
"""How long the other nodes may take to end after the first one has, and all of them when they are asked to."""
PASSED_ON = ("PATH", "HOME", "SYSTEMROOT", "TMPDIR", "TEMP", "HF_HUB_OFFLINE", "PIP_NO_INDEX", "PIP_FIND_LINKS")
"""What the process gets of this machine's own environment; a container would bring its own."""


@dataclass(kw_only=True)
class Rehearsed:
    """What a rehearsal showed."""

    output: Path
    starts: int = 0
    interrupted_at: int | None = None
    resumed_at: int | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    others: tuple[Path, ...] = ()
    """What the other nodes said: of several the first alone tells."""


def rehearse(
    target: Rehearsable, plan: Plan, root: Path, python: Path, secrets: Mapping[str, str],
    preempt_after: int | None, progress: Progress,
) -> Rehearsed:  # fmt: skip
    """Run the plan's job to its end under `root`, interrupted once after so many steps.

    Raises JobFailedError when the job fails, does not checkpoint when it is told to stop, or does not go on from
    its checkpoint.
    """
    nodes = plan.job.resources.nodes
    boxes = [target.contract(plan, root / f"node-{n}" if nodes > 1 else root, n) for n in range(nodes)]
    box = boxes[0]
    seen = Rehearsed(output=box.output, others=tuple(root / f"node-{n}.log" for n in range(1, nodes)))
    code = _start(boxes, plan, python, secrets, preempt_after, seen, progress)
    if preempt_after is not None and code != 0:
        if code != PREEMPTED or seen.interrupted_at is None:
            raise _failed(seen, f"the job did not checkpoint and stop when it was told to (exit code {code})")
        progress(f"interrupted after step {seen.interrupted_at}; a new machine, with nothing but {box.kept.name}")
        code = _start(boxes, plan, python, secrets, None, seen, progress)
        if code == 0 and seen.resumed_at is None:
            raise _failed(seen, "the job began anew instead of going on from its checkpoint")
    if code != 0:
        raise _failed(seen, f"the job failed (exit code {code})")
    return seen


def _start(
    boxes: Sequence[ContainerContract], plan: Plan, python: Path, secrets: Mapping[str, str],
    preempt_after: int | None, seen: Rehearsed, progress: Progress,
) -> int:  # fmt: skip
    """One start of the containers on fresh machines; the exit code, of several the first that is not 0."""
    for box in boxes:
        _lay_out(box, plan, boxes[0].kept)
    seen.starts += 1
    meeting = _meeting() if len(boxes) > 1 else {}
    first = _run(boxes[0], python, {**secrets, **meeting}, subprocess.PIPE)
    others = []
    try:
        for path, box in zip(seen.others, boxes[1:], strict=True):
            with path.open("w", encoding="utf-8") as log:
                others.append(_run(box, python, {**secrets, **meeting}, log))
            threading.Thread(target=_end_with, args=(others[-1], first), daemon=True).start()
        for item in _items(first):
            _hear(item, seen, progress)
            if preempt_after is not None and seen.interrupted_at is None and _step(item) >= preempt_after:
                seen.interrupted_at = _step(item)
                for process in (first, *others):
                    process.terminate()
        if first.wait() == 0:
            _wait(others)
    finally:
        _end([first, *others])
    return next((code for code in (process.wait() for process in (first, *others)) if code), 0)


def _run(
    box: ContainerContract, python: Path, more: Mapping[str, str], output: int | IO[str]
) -> subprocess.Popen[str]:
    own = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    # The caches are this machine's: what the vendor's machine would download is here already.
    # Nor has it the vendor's GPUs.
    env = {**own, **box.env, **more, "LAUNCH_CACHE_DIR": str(cache()), "LAUNCH_GPUS": "0"}
    env.pop("LAUNCH_SECRETS", None)  # references into a store that is not asked; the values are this machine's
    return subprocess.Popen(
        [str(python), *box.command[1:]], env=env, cwd=box.bundle, stdout=output, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", errors="replace",
    )  # fmt: skip


def _meeting() -> dict[str, str]:
    """Where nodes that all are this machine find each other; a GPU can't be in two of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    return {
        "LAUNCH_MASTER_ADDR": "127.0.0.1", "LAUNCH_MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": loopback,
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


def _wait(processes: Sequence[subprocess.Popen[str]]) -> None:
    until = time.monotonic() + TOGETHER_S
    with contextlib.suppress(subprocess.TimeoutExpired):
        for process in processes:
            process.wait(max(0.0, until - time.monotonic()))


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Those that still run: asked, waited for, killed."""
    left = [process for process in processes if process.poll() is None]
    for process in left:
        process.terminate()
    _wait(left)
    for process in left:
        if process.poll() is None:
            process.kill()


def _end_with(other: subprocess.Popen[str], first: subprocess.Popen[str]) -> None:
    """A vendor ends a job of which one node has failed; the first would wait for it for half an hour."""
    if other.wait() not in (0, PREEMPTED) and first.poll() is None:
        first.terminate()


def _items(process: subprocess.Popen[str]) -> Iterator[Event | str]:
    assert process.stdout is not None
    for line in process.stdout:
        text = line.rstrip("\n")
        yield from_line(text) or text


def _hear(item: Event | str, seen: Rehearsed, progress: Progress) -> None:
    if isinstance(item, Event):
        if item.name == "resumed":
            seen.resumed_at = item.fields["step"]
        elif item.name == "eval":
            seen.evaluation[str(item.fields["which"])] = item.fields["metrics"]
    text = item if isinstance(item, str) else as_words(item)
    if text:
        seen.lines.append(text)
        progress(text)


def _step(item: Event | str) -> int:
    return int(item.fields["step"]) if isinstance(item, Event) and item.name == "step" else -1


def _lay_out(box: ContainerContract, plan: Plan, kept: Path) -> None:
    """The container's folders as on a fresh machine: all but what the vendor keeps, for all nodes."""
    for folder in (box.bundle, *box.folders):
        if folder != box.kept:
            shutil.rmtree(folder, ignore_errors=True)
        elif folder != kept and not folder.is_symlink():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(kept)
        folder.mkdir(parents=True, exist_ok=True)
    for file in plan.bundle.files:
        if file.source is None:
            raise ConfigError(f"{file.path} is not on this machine", "rehearse with the job file")
        target = box.bundle / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.source, target)
    for path, text in box.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _failed(seen: Rehearsed, what: str) -> JobFailedError:
    reason = seen.output / "failure.json"
    hint = "see the lines above"
    if reason.is_file():
        told = json.loads(reason.read_text(encoding="utf-8"))
        what, hint = f"{what}: {told['message']}", told.get("hint") or hint
    if seen.others:
        hint += f"; the other nodes: {', '.join(map(str, seen.others))}"
    return JobFailedError(f"rehearsal: {what}", hint, log_tail=seen.lines[-TAIL:])
