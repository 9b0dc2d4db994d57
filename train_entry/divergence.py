"""A training that has gone wrong ends, and names the step and the rows of its batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from train_entry import watchdog
from train_entry.data import Example
from train_entry.failure import JobError
from train_entry.prefix import ROW_TOKENS, rows_in_packs

SHOWN = 16
"""Rows named in a message; the rest is counted."""
EXPLODED_STEPS, LOST_STEPS = 5, 20
"""For so many steps on end: a loss beyond all measure, and one that is worse than what was there before."""
EXPLODED_AT_END = 3
"""And where no step comes any more that could show more of them."""
LOST_AT_END = 1.5
"""There the mean of the last EXPLODED_STEPS is so many times the first loss."""
TAIL = 24
"""Tokens at a row's end by which it is known in a sequence that holds several."""


class NotedSteps:
    """What a Trainer notes of the step that it makes (mixed in before it): its batches, whether it is in one."""

    step_batches: Sequence[Any] = ()
    in_backward = False

    def get_batch_samples(self, *args: Any, **how: Any) -> Any:
        found = super().get_batch_samples(*args, **how)  # type: ignore[misc]
        self.step_batches = found[0]
        return found

    def training_step(self, *args: Any, **how: Any) -> Any:
        watchdog.beat()
        self.in_backward = True  # stays so when it raises
        loss = super().training_step(*args, **how)  # type: ignore[misc]
        self.in_backward = False
        return loss


class Course(Protocol):
    """What is kept of a training's course, over restarts."""

    start_loss: float | None
    high: int
    lost: int
    recent: list[float]
    best_mean: float | None


def watch(
    course: Course, loss: float, norm: float, step: int, vocabulary: int, rows: Callable[[], Sequence[str]]
) -> None:
    """Raise JobError("diverged") when the loss or the gradient is no number, or the loss has exploded.

    Exploded: for EXPLODED_STEPS on end twice that of the first step, and half as much again as that of a guess
    among all tokens. Lost: for LOST_STEPS worse than the first step, and worse than such a guess or far above the
    lowest mean of as many steps. A hard batch or a warm-up do not last so long.
    """
    if course.start_loss is None:
        course.start_loss = loss
    first, best, guess = course.start_loss, course.best_mean, math.log(vocabulary)
    high = loss > 2 * first and loss > 1.5 * guess
    lost = loss > 1.1 * first and (loss > 0.95 * guess or (best is not None and loss > 2 * best + 1))
    course.high = course.high + 1 if high else 0
    course.lost = course.lost + 1 if lost else 0
    course.recent = [*course.recent, loss][-LOST_STEPS:]
    if len(course.recent) == LOST_STEPS:
        mean = math.fsum(course.recent) / LOST_STEPS
        course.best_mean = mean if best is None else min(best, mean)
    exploded = course.high >= EXPLODED_STEPS
    if exploded or course.lost >= LOST_STEPS or not (math.isfinite(loss) and math.isfinite(norm)):
        named = rows()
        refuse_diverged("loss", loss, step, named)
        refuse_diverged("gradient norm", norm, step, named)
        before = f"the first was {first:.3g}" if best is None else f"{LOST_STEPS} steps had a mean of {best:.3g}"
        ends = "it explodes" if exploded else f"for {LOST_STEPS} steps what was learnt is gone"
        raise _diverged(f"the loss of step {step} is {loss:.3g}, and {before}: {ends}", named)


def spoiled(course: Course) -> bool:
    """May the weights be spoiled? Then no checkpoint takes the place of those that are not."""
    return course.high > 0 or course.lost >= EXPLODED_STEPS


def refuse_lost_end(course: Course, step: int, result: int, rows: Callable[[], Sequence[str]]) -> None:
    """Raise JobError("diverged") where the training ends at `step` in a collapse too short for `watch`.

    `result`: the step whose weights are the job's; a collapse after it did them no harm. A step's loss is that of
    the weights of the step before.
    """
    if course.start_loss is None or result < step - course.lost:  # what is high is lost as well
        return
    last = course.recent[-EXPLODED_STEPS:]
    mean = math.fsum(last) / len(last)
    gone = course.lost >= EXPLODED_STEPS and mean > LOST_AT_END * course.start_loss
    if gone or course.high >= EXPLODED_AT_END:
        raise _diverged(
            f"the loss of step {step}, the last, is {last[-1]:.3g}, and the first was {course.start_loss:.3g}: "
            f"in the last {course.lost} steps what was learnt is gone",
            rows(),
        )


def refuse_diverged(what: str, value: float, step: int, rows: Sequence[str] = ()) -> None:
    """Raise JobError("diverged") for a figure that is no number."""
    if not math.isfinite(value):
        raise _diverged(f"the {what} of step {step} is {value}", rows)


def rows_in(batches: Sequence[Any], examples: Sequence[Example]) -> list[str]:
    """Where the rows of these batches stand (file:line), padded or several to a sequence; [] when not known."""
    whole = {(*e.prompt, *e.completion): e.row.where for e in examples}
    found: dict[str, None] = {}
    for batch in batches:
        if ROW_TOKENS in batch:
            packed = set(rows_in_packs(batch))
            found |= {where: None for row, where in whole.items() if row[:-1] in packed}
            continue
        ids, mask = batch["input_ids"].tolist(), batch.get("attention_mask")
        for number, row in enumerate(ids):
            kept = row
            if mask is not None and mask.dim() == 2:
                kept = [i for i, m in zip(row, mask[number].tolist(), strict=True) if m]
            if (where := whole.get(tuple(kept))) is not None:
                found[where] = None
            else:
                text = _text(row)
                found |= {w: None for key, w in whole.items() if _text(key[-TAIL:]) in text}
    return list(found)


def _text(ids: Sequence[int]) -> str:
    return f" {' '.join(map(str, ids))} "


def _diverged(what: str, rows: Sequence[str]) -> JobError:
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    batch = f"; its batch: {', '.join(rows[:SHOWN])}{more}" if rows else ""
    return JobError(
        "diverged",
        f"{what}{batch}",
        "look at those rows; lower train.learning_rate, then go on from the last checkpoint: "
        "launch run --from-checkpoint JOB",
    )
