"""One rank of the job, from its rows to its artifact: `python -m train_entry.train`.

Exit status: 0 done and nothing else; 143 checkpointed and stopped (start it again to go on); 1 failed, with
failure.json in LAUNCH_OUTPUT_DIR.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from train_entry import memory, watchdog
from train_entry.checkpoint import Checkpoint, newest_agreed
from train_entry.cluster import refuse_fewer_gpus
from train_entry.config import TrainJob, fingerprint, read_job
from train_entry.data import Dataset, judged_rows, load_dataset
from train_entry.events import from_environment, say
from train_entry.failure import FAILURE, JobError, classify, write_atomic, write_failure
from train_entry.masking import mask
from train_entry.stop import PREEMPTED, Stopped, StopWatch, leave, unless_stopped

if TYPE_CHECKING:
    from train_entry.loop import Emit, JobCallback


Found = TypeVar("Found")
STOP_TOLD_S = 5.0
"""Within this time every node knows of a stop that one of them was asked for (see StopWatch.share)."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Where this rank stands: the job, its folders, its place among the ranks."""

    job: TrainJob
    inputs: Path
    outputs: Path
    checkpoints: Path
    work: Path
    rank: int
    local_rank: int
    world: int
    device: str
    emit: Emit
    stop: StopWatch

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def leader(self) -> bool:
        """Is this the rank that does what is done once a node?"""
        return self.local_rank == 0


def main() -> int:
    """Run the job in the folders named by LAUNCH_INPUT_DIR, LAUNCH_OUTPUT_DIR and LAUNCH_CHECKPOINT_DIR."""
    checkpoints = Path(os.environ["LAUNCH_CHECKPOINT_DIR"])
    return guarded(lambda outputs: _run(context(outputs, checkpoints)))


def guarded(run: Callable[[Path], int]) -> int:
    """The exit status of run(LAUNCH_OUTPUT_DIR); what goes wrong stands in failure.json there."""
    outputs = Path(os.environ["LAUNCH_OUTPUT_DIR"])
    stop_file = work_of(outputs) / "stop"
    try:
        code = run(outputs)
    except Stopped:
        code = PREEMPTED
    except memory.TakeLess:
        return 1  # and no failure: __main__ starts the ranks again
    except BaseException as exc:  # noqa: BLE001 - whatever it was, failure.json must say it
        import traceback

        error = classify(exc)
        # Another rank or node has ended: it knows why, and tells of a stop a moment later.
        follower = int(os.environ.get("RANK", "0")) > 0 and not isinstance(exc, JobError)
        if (follower or error.kind == "killed") and _appears(stop_file, outputs / FAILURE):
            return PREEMPTED
        say(mask(traceback.format_exc()), sys.stderr)
        _leave_failure(outputs, error, exc, follower)
        hint = f"\n{error.hint}" if error.hint else ""
        say(mask(f"failed ({error.kind}): {error.message}{hint}"), sys.stderr)
        return 1
    if code == PREEMPTED:  # torchrun makes 1 of it: the file says what it was
        stop_file.touch()
    # It is decided: a signal that comes while the interpreter ends must not make a failure of it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return code


def _appears(stop_file: Path, failure: Path) -> bool:
    """True when this was a stop; several nodes need a moment to hear of it, a failure ends the waiting."""
    end = time.monotonic() + (STOP_TOLD_S if os.environ.get("LAUNCH_NODES", "1") != "1" else 0)
    while not stop_file.exists():
        if time.monotonic() >= end or failure.exists():
            return False
        time.sleep(0.1)
    return True


def _leave_failure(outputs: Path, error: JobError, exc: BaseException, follower: bool) -> None:
    """Write failure.json on this node, and in the output folder unless the first to fail has told the cause."""
    work = work_of(outputs)
    secondhand = follower or error.kind == "killed"
    for folder in {work, outputs}:
        if not (secondhand and (folder / FAILURE).exists()):
            write_failure(folder, error, exc)


def work_of(outputs: Path) -> Path:
    """This node's working files: `__main__` has chosen the folder."""
    return Path(os.environ.get("LAUNCH_WORK_DIR") or outputs / ".work")


def context(outputs: Path, checkpoints: Path) -> Context:
    """Read the job and take this rank's place; from here on a signal is noted, not fatal."""
    work = work_of(outputs)
    work.mkdir(parents=True, exist_ok=True)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    stop = StopWatch(work / "stop")  # before anything slow
    write_atomic(work / f"rank-{rank}.pid", str(os.getpid()).encode())
    watchdog.dump_on_request()
    inputs = Path(os.environ["LAUNCH_INPUT_DIR"])
    job = read_job(inputs / "job.json")
    stop.set_limit(job.max_hours)
    # At every import on a CPU it complains that an optional package of kernels is absent.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import torch

    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local == 0:
        stop.share()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    refuse_fewer_gpus(gpus)
    device = f"cuda:{local}" if gpus else "cpu"
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(int(os.environ.get("LAUNCH_THREADS") or max(1, _cores() // ranks_here)))
    emit = from_environment().emit if rank == 0 else _silent
    return Context(
        job=job, inputs=inputs, outputs=outputs, checkpoints=checkpoints, work=work, rank=rank,
        local_rank=local, world=world, device=device, emit=emit, stop=stop,
    )  # fmt: skip


def _run(at: Context) -> int:
    """All phases. Raises Stopped outside of training."""
    from train_entry import loop, trainers
    from train_entry.models import load_base, load_tokenizer, with_tuning

    most = memory.most_rows(at.checkpoints, at.device)
    config = trainers.trainer_config(at.job, at.work, at.device, at.world, most)
    at.emit("phase", name="data")
    # Rank 0 fetches and converts, then one rank on each other node; the rest read what they left.
    turn = 0 if at.first else 1 if at.leader else 2
    for _ in range(turn):
        loop.barrier()
    tokenizer = _unless_stopped(at, lambda: load_tokenizer(at.job, at.inputs))
    for _ in range(2 - turn):
        loop.barrier()
    data = _unless_stopped(at, lambda: load_dataset(at.job, at.inputs, tokenizer))
    emit_data(at, data)
    _agree_to_go_on(at)
    parts = {**at.job.fingerprint_parts(), "data.sha256": data.sha256}
    # A dry run measures from the first step, whatever an earlier job has left.
    found = None if at.job.train.dry_run_steps else newest_agreed(at.checkpoints, parts, at.leader, at.rank)
    _agree_to_go_on(at)
    model = _unless_stopped(at, lambda: load_base(at.job, at.inputs, at.device))
    _agree_to_go_on(at)
    baseline = None
    if at.first:
        watchdog.begin(at.work, at.rank)  # the others wait for it
    if at.job.eval.baseline and not at.job.train.dry_run_steps:
        baseline = _baseline(at, model, tokenizer, data, parts)
    model = with_tuning(model, at.job)
    callback = _train(at, model, tokenizer, config, data, parts, found)
    if callback.stopped:
        watchdog.end()
        at.emit("stopped", step=_last_step(callback), reason=callback.stopped)
        return PREEMPTED
    if at.job.train.dry_run_steps:
        at.emit("stopped", step=at.job.train.dry_run_steps, reason="dry_run")
        at.emit("done", **_train_figures(callback), artifact=None, files=[])
        return 0
    _finish(at, model, tokenizer, data, baseline, callback)
    return 0


def emit_data(at: Context, data: Dataset) -> None:
    at.emit(
        "data", train_rows=len(data.train), eval_rows=len(data.held_out),
        train_tokens=sum(map(len, data.train)), dropped=data.dropped, truncated=data.truncated,
        labels=list(data.labels) if data.labels else None,
    )  # fmt: skip


def _baseline(
    at: Context, model: Any, tokenizer: Any, data: Dataset, parts: Mapping[str, str]
) -> dict[str, Any] | None:
    """The base model's figures and answers: measured once, kept beside the checkpoints for every restart."""
    from train_entry.loop import barrier

    kept = at.checkpoints / "baseline.json"
    # What the figures depend on: the job, how it is judged, and the rows.
    judged = [(e.prompt, e.completion) for e in judged_rows(at.job, data)]
    mark = fingerprint({**parts, "eval": repr(at.job.eval), "rows": repr(judged)})
    found: dict[str, Any] | None = None
    if at.first:
        found = _kept_baseline(kept, mark)
        if found is None:
            at.emit("phase", name="baseline")
            metrics, answers = judge_rows(at, model, tokenizer, data)
            found = {"mark": mark, "metrics": metrics, "answers": answers}
            write_atomic(kept, json.dumps(found).encode())
        at.emit("eval", which="baseline", metrics=found["metrics"])
    barrier()
    _agree_to_go_on(at)
    return found


def _kept_baseline(kept: Path, mark: str) -> dict[str, Any] | None:
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("mark") == mark else None


def _train(
    at: Context, model: Any, tokenizer: Any, config: Any, data: Dataset, parts: Mapping[str, str],
    found: Checkpoint | None,
) -> JobCallback:  # fmt: skip
    """Train from the beginning or from `found`; the model then has the result's weights."""
    from train_entry import loop, trainers
    from train_entry.divergence import rows_in

    progress = loop.Progress(**found.notes) if found else loop.Progress()
    if found and found.changed:
        progress = progress.of_a_changed_job()
    callback = loop.JobCallback(
        at.job, progress, at.stop, at.emit, at.work, at.checkpoints, parts, data.held_out,
        tokenizer.pad_token_id,
    )  # fmt: skip
    if at.first:
        shutil.rmtree(at.work / "result", ignore_errors=True)
        if found and not found.changed and (found.folder / "result").is_dir():
            shutil.copytree(found.folder / "result", at.work / "result")
    loop.barrier()
    watchdog.begin(at.work, at.rank)
    if found:
        at.emit("resumed", step=found.step, path=str(found.folder), changed=list(found.changed))
        callback.resumed_step, callback.changed = found.step, bool(found.changed)
    if not progress.finished:
        at.emit("phase", name="train")
        packing = trainers.packing_of(
            model, tokenizer, config, at.job, data.train, memory.most_rows(at.checkpoints, at.device)
        )
        at.emit("packing", **dataclasses.asdict(packing))
        trainer = trainers.make_trainer(model, tokenizer, config, at.job, data.train, packing)
        trainer.add_callback(callback)
        callback.prefixes = packing.kind == "prefix"
        callback.plan_evaluations(len(trainer.get_train_dataloader()), packing.passes)
        callback.rows_of_step = lambda: rows_in(trainer.step_batches, data.train)
        resume = str(found.folder / "trainer") if found else None
        save = not at.job.train.dry_run_steps
        with contextlib.suppress(loop.Over):
            memory.train(trainer, at.work, at.checkpoints, at.device, save, resume_from_checkpoint=resume)
        callback.last_step = int(trainer.state.global_step)
        if progress.finished:  # perhaps by a judgement that a stop had put off
            callback.refuse_lost_end(callback.last_step)
    if progress.finished and at.first:  # the others hold no result, and judge nothing
        loop.load_result(model, at.work / "result")
    return callback


def _finish(
    at: Context, model: Any, tokenizer: Any, data: Dataset, baseline: dict[str, Any] | None,
    callback: JobCallback,
) -> None:  # fmt: skip
    from train_entry.artifact import build_artifact, prediction_rows, put_in_place
    from train_entry.general import drop
    from train_entry.loop import barrier

    if not at.first:
        watchdog.end()  # it waits for as long as the first rank judges and writes
    if at.first:
        tuned = answers = None
        if at.job.eval.tuned:
            at.emit("phase", name="evaluate")
            tuned, answers = judge_rows(at, model, tokenizer, data)
            at.emit("eval", which="tuned", metrics=tuned)
        watchdog.end()
        at.emit("phase", name="save")
        figures = _train_figures(callback)
        metrics = {
            "task": at.job.task,
            "baseline": baseline["metrics"] if baseline else None,
            "tuned": tuned,
            "general_drop": drop(baseline["metrics"] if baseline else None, tuned),
            "train": {
                **figures,
                "tokens": callback.progress.tokens,
                "final_loss": callback.progress.final_loss,
                "best_eval_loss": callback.progress.best_loss,
                "best_step": callback.progress.best_step or None,
            },
        }
        predictions = prediction_rows(
            judged_rows(at.job, data), baseline["answers"] if baseline else None, answers
        )

        def built() -> Path:
            job_file = at.inputs / "job.json"
            return build_artifact(at.work, model, tokenizer, at.job, job_file, metrics, predictions)

        # Hours that are over do not end it: all is paid for but this, and the vendor's hard stop comes later.
        building = _unless_stopped(at, built, last=True)
        at.emit("done", **figures, artifact="artifact", files=put_in_place(building, at.outputs))
    barrier()
    if at.leader:
        shutil.rmtree(at.work, ignore_errors=True)


def judge_rows(at: Context, model: Any, tokenizer: Any, data: Dataset) -> tuple[dict[str, Any], list[str]]:
    """(metrics, answers) of the model on the rows that are judged. Raises Stopped between batches."""
    from train_entry import general
    from train_entry.evaluate import judge

    rows = judged_rows(at.job, data)
    metrics, answers = judge(model, tokenizer, at.job, rows, data.labels, at.inputs, lambda: _check_stop(at))
    if at.job.eval.general:
        metrics["general"] = general.score(model, tokenizer, at.job, lambda: _check_stop(at))
    return metrics, answers


def _train_figures(callback: JobCallback) -> dict[str, Any]:
    from train_entry.loop import peak_gib

    progress = callback.progress
    seconds = progress.train_s
    return {
        "steps": _last_step(callback),
        "train_s": round(seconds, 2),
        "tokens_per_s": round(progress.tokens / seconds, 1) if seconds else None,
        "step_s": round(seconds / _last_step(callback), 3) if _last_step(callback) else None,
        "peak_gib": peak_gib(),
    }


def _last_step(callback: JobCallback) -> int:
    return callback.last_step or callback.resumed_step


def _agree_to_go_on(at: Context) -> None:
    """Between phases: all ranks stop or none. Nothing is lost that a checkpoint does not hold."""
    _stop_for(at, at.stop.agreed())


def _unless_stopped(at: Context, work: Callable[[], Found], last: bool = False) -> Found:
    """What work() gives, for what may take minutes and loses nothing by being done again. Raises Stopped.

    `last`: it is all that is left of the job. It is begun in any case, and no deadline ends it.
    """

    def check() -> None:
        reason = at.stop.reason()
        if reason and not (last and reason == "deadline"):
            raise Stopped(reason)

    def on_device() -> Found:
        if at.device != "cpu":
            import torch

            torch.cuda.set_device(at.device)  # a thread has its own
        return work()

    try:
        if not last:  # several of these on end have one notice together
            check()
        return unless_stopped(on_device, check)
    except Stopped as stopped:  # told only now: it may be done in spite of a stop
        at.emit("stopped", step=None, reason=str(stopped))
        raise


def _check_stop(at: Context) -> None:
    """Between batches that rank 0 judges alone."""
    _stop_for(at, at.stop.reason())


def _stop_for(at: Context, reason: str | None) -> None:
    if reason:
        at.emit("stopped", step=None, reason=reason)
        raise Stopped(reason)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _silent(event: str, **fields: Any) -> None:
    """Only rank 0 tells."""


if __name__ == "__main__":
    ended = main()
    if ended == PREEMPTED:
        leave(ended)
    sys.exit(ended)
