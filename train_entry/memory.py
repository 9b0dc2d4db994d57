"""Out of memory in a training step: half the rows a forward pass, twice the passes, the same batch.

A process that ran out is not trusted to go on (its memory is in pieces, other ranks wait for it): the rank
leaves word and ends, __main__ starts the ranks again, and they go on from a checkpoint. What was found out
stands beside the checkpoints, so that no later start of the job on such a device finds it out again.
"""

from __future__ import annotations

import gc
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from train_entry.events import say
from train_entry.failure import JobError, classify, write_atomic
from train_entry.masking import mask

AGAIN = "again.json"
"""In the work folder: a rank asks for a new start with less."""
RECORD = "micro_batch.json"
"""In the checkpoint folder: the rows a forward pass that this device can take at most."""


class TakeLess(Exception):
    """Raised when the ranks must be started again, with the smaller micro-batch that is on record."""


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
    gc.collect()
    import torch

    torch.cuda.empty_cache()  # does nothing without a GPU
    trainer._save_checkpoint(trainer.model_wrapped, None)
    trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
