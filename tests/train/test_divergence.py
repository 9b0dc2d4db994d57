"""A training that has gone wrong ends early; one that only looks so for a while goes on."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from train_entry.divergence import refuse_lost_end, spoiled, watch
from train_entry.failure import JobError
from train_entry.loop import Progress

VOCABULARY = 49152
"""A guess among so many tokens has a loss of 10.8."""


def course(losses: Sequence[float]) -> tuple[int | None, str, Progress]:
    """(step at which the training ended, why, its course)."""
    progress = Progress()
    for step, loss in enumerate(losses, 1):
        try:
            watch(progress, loss, 1.0, step, VOCABULARY, lambda: ["train.jsonl:1"])
        except JobError as error:
            return step, error.message, progress
    return None, "", progress


def noisy(levels: Sequence[float], spread: float, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [max(0.0, level * draw.lognormvariate(0.0, spread)) for level in levels]


RATE_OF_10 = [9.51, 7.16, 28.9, 20.96, 28.9, 19.09, 40.87, 18.57, *[10.8] * 22]
"""SmolLM2-135M on four tickets a step, LoRA with train.learning_rate 10: measured 2026-11-30."""
FALLING = [3.0 * 0.97**step for step in range(150)]
HEALTHY = {
    "falls": noisy(FALLING, 0.3),
    "a spike at the end of the warm-up": [3.0] * 10 + [12.0, 30.0, 25.0, 9.0, 6.0, 4.0] + FALLING,
    "a tiny first loss": [1e-4, *noisy([2.5] * 30 + FALLING, 0.3)],
    "a model that has learnt nothing yet": noisy([11.2] * 60 + [8.0] * 60, 0.05),
    "tokens that the model has never seen": [22.0 - 0.3 * step for step in range(60)],
    "nearly learnt, with hard rows": [9.0 if step % 7 == 0 else 1e-3 for step in range(300)],
    "one row a step, some hard": noisy([0.3] * 400, 1.5),
    "a fall to nothing and rows that differ": noisy(FALLING + [1e-3] * 200, 1.0, seed=3),
    "bad steps, and a slow return": FALLING + [14.0] * 15 + FALLING,
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_training_is_left_alone(name):
    ended, why, _ = course(HEALTHY[name])
    assert ended is None, why


@pytest.mark.parametrize(
    ("before", "after", "steps", "why"),
    [
        ([], RATE_OF_10, 7, "it explodes"),
        (RATE_OF_10[:2], RATE_OF_10[8:], 20, "what was learnt is gone"),
        ([3.0], [50.0] * 99, 5, "it explodes"),
        (FALLING, [30.0, 80.0, 200.0, 90.0, 60.0, 60.0], 5, "it explodes"),
        ([3.0] * 4, [11.5] * 99, 20, "what was learnt is gone"),
        ([7.9] * 4, [13.0] * 99, 20, "what was learnt is gone"),
        (FALLING, noisy([10.9] * 99, 0.05), 20, "what was learnt is gone"),
        (FALLING, noisy([7.0] * 99, 0.1), 20, "what was learnt is gone"),
    ],
)
def test_a_training_that_is_lost_ends_within_few_steps(before, after, steps, why):
    ended, message, progress = course([*before, *after])
    assert ended is not None and ended <= len(before) + steps
    assert why in message and f"the loss of step {ended} is" in message and "train.jsonl:1" in message
    assert spoiled(progress)


ENDS = {
    "explodes": ([*FALLING, 30.0, 80.0, 60.0], True),
    "with a rate of 10": (RATE_OF_10[:6], True),
    "is lost": ([*FALLING, *[7.0] * 9], True),
    "is lost after few steps": ([3.0, 2.5, 2.0, *[11.0] * 6], True),
    "has two hard batches": ([*FALLING, 30.0, 20.0], False),
    "has a few that are hard": ([*FALLING, *[7.0] * 4], False),
    "has not learnt much": ([9.9, *[11.3] * 9], False),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_short_training_that_ends_in_a_collapse_has_not_succeeded(name):
    losses, gone = ENDS[name]
    step, (ended, _, progress) = len(losses), course(losses)
    assert ended is None, "too short for what is watched meanwhile"
    if not gone:
        refuse_lost_end(progress, step, step, list)
        return
    with pytest.raises(
        JobError, match=rf"the loss of step {step}, the last, is .* gone; its batch: train\.jsonl:1"
    ):
        refuse_lost_end(progress, step, step, lambda: ["train.jsonl:1"])
    before = step - progress.lost
    with pytest.raises(JobError, match="gone"):
        refuse_lost_end(progress, step, before, list)
    refuse_lost_end(progress, step, before - 1, list)  # early stopping kept weights that are whole


SPIKES = ("a spike at the end of the warm-up", "bad steps, and a slow return")


@pytest.mark.parametrize("name", [name for name in HEALTHY if name not in SPIKES])
def test_healthy_training_may_end_at_any_step(name):
    for length in range(1, len(HEALTHY[name]) + 1):
        _, _, progress = course(HEALTHY[name][:length])
        refuse_lost_end(progress, length, length, list)


def test_nothing_is_kept_while_the_weights_may_be_spoiled_and_again_when_they_recover():
    for levels in ([30.0], [7.0] * 5):
        _, _, progress = course([*FALLING, *levels])
        assert spoiled(progress)
        _, _, progress = course([*FALLING, *levels, 1.0])
        assert not spoiled(progress)
    assert not spoiled(course([*FALLING, 7.0])[2]), "a hard batch alone keeps no checkpoint from being made"


def test_the_course_goes_on_over_a_restart():
    _, _, before = course([*FALLING, *[7.0] * 12])
    after = Progress(**before.__dict__)
    with pytest.raises(JobError, match="what was learnt is gone"):
        for step in range(8):
            watch(after, 7.0, 1.0, 200 + step, VOCABULARY, list)
