"""Out of memory: half the rows a forward pass, and of training twice the passes, so that the batch is the same.

A process that ran out in a step is not trusted to go on (its memory is in pieces, other ranks wait for it): the
rank leaves word and ends, __main__ starts the ranks again, and they go on from a checkpoint. What was found out
stands beside the checkpoints, so that no later start of the job on such a device finds it out again.

One rank judges alone, and needs nothing of a batch that failed: there it goes on (`Passes`).
"""

from __future__ import annotations

import gc
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from train_entry.events import say
from train_entry.failure import JobError, classify, write_atomic
from train_entry.masking import mask

Item = TypeVar("Item")
Found = TypeVar("Found")
AGAIN = "again.json"
"""In the work folder: a rank asks for a new start with less."""
RECORD = "micro_batch.json"
"""In the checkpoint folder: the rows a forward pass that this device can take at most."""


class TakeLess(Exception):
    """Raised when the ranks must be started again, with the smaller micro-batch that is on record."""


class Passes:
    """Judging in passes of `rows` at most: half as many from where the device runs out of memory."""

    def __init__(self, rows: int, what: str) -> None:
        """`what` is judged, as a message names it."""
        self.rows, self._what = rows, what

    def over(self, items: Sequence[Item], judge: Callable[[Sequence[Item]], Sequence[Found]]) -> list[Found]:
        """What `judge` finds of every item, in their order. Raises JobError("oom") when one is too much."""
        found: list[Found] = []
        at = 0
        while at < len(items):
            part = items[at : at + self.rows]
            try:
                found += judge(part)
                at += len(part)
                continue
            except Exception as exc:
                error = classify(exc)
                if error.kind != "oom" or error is exc:
                    raise
                if len(part) == 1:
                    raise self._too_much(error) from exc
            # Only here are the tensors of the exception's frames free.
            _free()
            self.rows = len(part) // 2
            say(f"{self._what} was out of memory with {len(part)} rows a pass; now {self.rows}", sys.stderr)
        return found

    def _too_much(self, error: JobError) -> JobError:
        return JobError(
            "oom",
            f"{self._what} was {error.message}, with one row a pass",
            "eval.batch_size can't be less: lower data.max_length, or eval.max_new_tokens for free answers, or "
            "take a larger GPU; launch resume goes on from the last checkpoint",
        )


def most_rows(checkpoints: Path, device: str) -> int | None:
    """The rows a forward pass that earlier starts on such a device were left with; None: not known."""
    try:
        found = json.loads((checkpoints / RECORD).read_text(encoding="utf-8"))
        rows = int(found["rows"])
        return rows if rows >= 1 and found["device"] == device_name(device) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def device_name(device: str) -> str:
    """What kind of device it is, with its memory: a larger one is tried afresh."""
    if device == "cpu":
        return "cpu"
    import torch

    found = torch.cuda.get_device_properties(device)
    return f"{found.name}, {found.total_memory // 2**30} GiB"


def train(trainer: Any, work: Path, checkpoints: Path, device: str, save: bool, **how: Any) -> None:
    """trainer.train(**how). Out of memory: makes the step before a checkpoint (`save`) and raises TakeLess.

    Raises JobError("oom") when one row is too much, and when it was an evaluation.
    """
    try:
        trainer.train(**how)
    except Exception as exc:
        error = classify(exc)
        if error.kind != "oom" or error is exc:  # what is a JobError already is not the step's
            raise
        say(mask(traceback.format_exc()), sys.stderr)
    else:
        return
    # Only here, after the exception, are the tensors of its frames free.
    rows = trainer.args.per_device_train_batch_size
    if rows == 1:
        raise JobError("oom", f"one row a forward pass is too much: {error.message}", error.hint)
    step = int(trainer.state.global_step)
    # Other ranks are stuck in the step, and can't save their part.
    if save and trainer.in_backward and trainer.args.world_size == 1 and step > trainer._initial_global_step:
        _save(trainer)
    less = rows // 2
    write_atomic(checkpoints / RECORD, json.dumps({"rows": less, "device": device_name(device)}).encode())
    write_atomic(work / AGAIN, json.dumps({"step": step + 1, "rows": less, "was": rows}).encode())
    raise TakeLess


def _save(trainer: Any) -> None:
    """A checkpoint of the step before: weights and optimizer have not seen the one that failed."""
    trainer.optimizer.zero_grad(set_to_none=True)
    _free()
    trainer._save_checkpoint(trainer.model_wrapped, None)
    trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)


def _free() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    import torch

    torch.cuda.empty_cache()  # does nothing without a GPU
