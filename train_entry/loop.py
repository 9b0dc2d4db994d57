"""The training loop: one callback that reports, judges, saves and stops, and what the ranks tell each other."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from train_entry import watchdog
from train_entry.checkpoint import publish
from train_entry.config import TrainJob
from train_entry.data import Example
from train_entry.divergence import refuse_diverged, refuse_lost_end, spoiled, watch
from train_entry.held_out import held_out_loss, packed_loss
from train_entry.resuming import take_settings
from train_entry.stop import Stopped, StopWatch

Emit = Callable[..., None]


@dataclass
class Progress:
    """What must survive a restart beside the trainer's own state; stands in the checkpoint's notes."""

    best_loss: float | None = None
    best_step: int = 0
    misses: int = 0
    finished: bool = False
    train_s: float = 0.0
    tokens: int = 0
    final_loss: float | None = None
    start_loss: float | None = None
    high: int = 0
    lost: int = 0
    recent: list[float] = dataclasses.field(default_factory=list)
    best_mean: float | None = None
    unjudged: bool = False
    """A stop came while the held-out loss of the last step was measured: the next start begins with that."""

    def of_a_changed_job(self) -> Progress:
        """What stays when the job goes on as another: the time and the tokens. Its losses are not comparable."""
        return Progress(train_s=self.train_s, tokens=self.tokens)


class Over(Exception):
    """Raised before the first step of a start that has none to make."""


class JobCallback(TrainerCallback):  # type: ignore[misc]
    """Step events, held-out loss, early stopping, checkpoints and stopping, agreed between the ranks."""

    def __init__(
        self, job: TrainJob, progress: Progress, stop: StopWatch, emit: Emit, work: Path, checkpoints: Path,
        parts: Mapping[str, str], held_out: Sequence[Example], pad: int,
    ) -> None:  # fmt: skip
        self.job, self.progress, self.stop, self.emit = job, progress, stop, emit
        self.work, self.checkpoints, self.parts = work, checkpoints, parts
        self.held_out, self.pad = held_out, pad
        self.rows_of_step: Callable[[], list[str]] = list
        self.eval_every = 1
        self.prefixes = False
        self.stopped: str | None = None
        self.resumed_step = self.last_step = 0
        self.changed = False
        self._began = self._tokens_before = 0.0
        self._last_save = time.monotonic()
        self._step_s = 0.0
        self._tokens = 0

    def plan_evaluations(self, batches: int, accumulate: int) -> None:
        """Say how many micro-batches an epoch has; the held-out loss is measured evals_per_epoch times."""
        steps = max(1, math.ceil(batches / accumulate))
        self.eval_every = math.ceil(steps / self.job.train.evals_per_epoch)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, lr_scheduler: Any = None, **_: Any
    ) -> None:
        if self.changed:
            take_settings(lr_scheduler, self.job, state.global_step, state.max_steps)
        if self.progress.unjudged and self._over(state, model):
            raise Over
        if torch.cuda.is_available():  # what was judged before is not training's
            torch.cuda.reset_peak_memory_stats()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.perf_counter()
        self._tokens_before = float(state.num_input_tokens_seen)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._step_s = time.perf_counter() - self._began
        self._tokens = int(state.num_input_tokens_seen) - int(self._tokens_before)
        self.progress.train_s += self._step_s
        self.progress.tokens += self._tokens
        if self.job.train.dry_run_steps:
            self.stopped = self.stop.agreed()
            control.should_training_stop = control.should_training_stop or bool(self.stopped)
            return
        over = self._over(state, model)
        control.should_training_stop = control.should_training_stop or over
        if over or self._save_due(state.global_step):
            control.should_save = True

    def _over(self, state: Any, model: Any) -> bool:
        """Judge the step where that is due; True when it was the last, or the job must stop."""
        last = state.global_step >= state.max_steps
        if last or self.progress.unjudged or state.global_step % self.eval_every == 0:
            enough = self._judge(state, model)
            self.progress.unjudged = enough is None
            if enough is None:
                self.stopped = self.stop.agreed()
                return True
            last |= enough
        if last:
            self.progress.finished = True
            self._keep_result(model, only_if_missing=self.job.train.early_stopping is not None)
        else:
            self.stopped = self.stop.agreed()
        return last or bool(self.stopped)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        checked = 0.0 if args.fp16 else norm  # there the scaler skips a step without a finite one
        vocabulary = getattr(model, "module", model).config.get_text_config().vocab_size

        def rows() -> list[str]:
            """Of every rank: the figures are the same on each, so all of them ask or none."""
            return [row for rank in gathered(self.rows_of_step()) for row in rank]

        watch(self.progress, loss, checked, state.global_step, vocabulary, rows)
        if self.progress.finished:  # and not saved yet
            self.refuse_lost_end(state.global_step, rows)
        if spoiled(self.progress) and not control.should_training_stop:
            control.should_save = False  # not what may be spoiled, over what is not
        self.progress.final_loss = loss
        self.emit(
            "step", step=state.global_step, total_steps=state.max_steps, epoch=round(state.epoch or 0, 4),
            loss=loss, lr=float(logs.get("learning_rate", 0.0)), grad_norm=norm if math.isfinite(norm) else None,
            tokens=self._tokens, tokens_per_s=round(self._tokens / self._step_s, 1),
            step_s=round(self._step_s, 4), peak_gib=peak_gib(),
        )  # fmt: skip

    def refuse_lost_end(self, step: int, rows: Callable[[], list[str]] = list) -> None:
        """Raise JobError("diverged") where the result's weights are those of a collapse that ends the training."""
        kept = step if self.job.train.early_stopping is None else self.progress.best_step
        refuse_lost_end(self.progress, step, kept, rows)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The trainer has written its own folder: make a checkpoint of it and of the best weights."""
        written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        name = f"rng_state_{args.process_index}.pth"
        own = (written / name).read_bytes() if args.world_size > 1 else b""
        states = gathered((name, own))  # every rank's: other nodes have written elsewhere
        if args.process_index == 0:
            build = self.work / "build"
            shutil.rmtree(build, ignore_errors=True)
            build.mkdir(parents=True)
            written.rename(build / "trainer")
            for name, content in states if args.world_size > 1 else ():
                (build / "trainer" / name).write_bytes(content)
            if (self.work / "result").is_dir():
                shutil.copytree(self.work / "result", build / "result", copy_function=_copy)
            path = publish(
                build, self.checkpoints, state.global_step, self.parts,
                dataclasses.asdict(self.progress), self.job.train.keep_checkpoints,
            )  # fmt: skip
            shutil.rmtree(build)
            self.emit("checkpoint", step=state.global_step, path=str(path))
        self._last_save = time.monotonic()
        barrier()
        if args.local_process_index == 0:
            shutil.rmtree(written, ignore_errors=True)
        watchdog.beat()
        if self.stopped is None and (reason := self.stop.agreed()):  # came while it was written: no other step
            self.stopped = reason
            control.should_training_stop = True

    def _judge(self, state: Any, model: Any) -> bool | None:
        """Measure the held-out loss; True when it has not fallen for long enough, None when a stop came first."""
        loss = None
        if state.is_world_process_zero:
            loss = self._held_out_loss(getattr(model, "module", model))
            if loss is not None:
                refuse_diverged("evaluation loss", loss, state.global_step)
                self.emit("eval_loss", step=state.global_step, loss=loss)
        loss = broadcast(loss)
        if loss is None:
            return None
        rule = self.job.train.early_stopping
        if rule is None:
            return False
        progress = self.progress
        if progress.best_loss is None or loss < progress.best_loss - rule.min_delta:
            progress.best_loss, progress.best_step, progress.misses = loss, state.global_step, 0
            self._keep_result(model, only_if_missing=False)
            return False
        progress.misses += 1
        return progress.misses >= rule.patience

    def _held_out_loss(self, model: Any) -> float | None:
        """None when the job must stop."""
        rows = self.job.eval.batch_size
        try:
            if self.prefixes:
                return packed_loss(model, self.held_out, rows, self._check_stop)
            return held_out_loss(model, self.held_out, rows, self.pad, self._check_stop)
        except Stopped:  # the ranks agree on it at the end of the step
            return None

    def _check_stop(self) -> None:
        if reason := self.stop.reason():
            raise Stopped(reason)

    def _keep_result(self, model: Any, only_if_missing: bool) -> None:
        """Save the weights that are the job's result so far."""
        target = self.work / "result"
        if int(os.environ.get("RANK", "0")) or (only_if_missing and target.exists()):
            return
        temporary = self.work / ".result"
        shutil.rmtree(temporary, ignore_errors=True)
        watchdog.beat()
        getattr(model, "module", model).save_pretrained(temporary)
        watchdog.beat()
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)

    def _save_due(self, step: int) -> bool:
        every = self.job.train.checkpoint_steps
        by_clock = time.monotonic() - self._last_save >= self.job.train.checkpoint_minutes * 60
        return bool(broadcast(by_clock)) or bool(every and step % every == 0)


def _copy(source: str, target: str) -> None:
    watchdog.beat()
    shutil.copyfile(source, target)


def load_result(model: Any, folder: Path) -> None:
    """Give the model the weights kept in `folder` (an adapter, or all of them)."""
    from safetensors.torch import load_file

    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
        return
    weights = type(model).from_pretrained(folder, dtype=model.dtype).state_dict()
    model.load_state_dict(weights)


def barrier() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def gathered(value: Any) -> list[Any]:
    """Every rank's value, in their order, on every rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    box = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(box, value)
    return box


def broadcast(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def peak_gib() -> float:
    """Most memory used so far in GiB: of the GPU by tensors, of a CPU process as resident set."""
    if torch.cuda.is_available():
        return round(float(torch.cuda.max_memory_allocated()) / 2**30, 3)
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return round(float(psutil.Process().memory_info()._asdict()["peak_wset"]) / 2**30, 3)
    # Linux counts KiB, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)
