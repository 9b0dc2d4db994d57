"""Rows that training may pack: the low end of the time reaches to it, and the preview says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cost.assumptions import assumptions
from cost.calibration import Calibration
from cost.estimate import Estimator
from cost.tokens import shared
from cost.work import Work
from launcher.spec import JobSpec
from tests.unit.cost_jobs import PRICES, job, offer, work

SAID = "training may pack them"


def hours(of: Work, calibration: Calibration | None = None) -> tuple[float, float, bool]:
    """(low, expected, whether packing is said) of an A100."""
    found = Estimator(work=of, prices=PRICES, calibrations=lambda gpu, kind, stack: calibration)(offer())
    known = found.hardware.hours
    assert known is not None
    return known.useful.low, known.useful.expected, any(SAID in line for line in assumptions(of, [found]))


def plain(of: JobSpec | None = None) -> Work:
    """1,000 rows of 200 tokens, which padding makes no longer."""
    return work(of, lengths=(200,), rows=60_000, answer=20)


def test_what_prompts_share_is_computed_once() -> None:
    rows = [([1, 2, 3], [7, 9]), ([1, 2, 4], [8, 9])]
    assert shared(rows, 2) == 3
    assert shared(rows, 1) == 4, "alone, every token but the last"
    assert shared([([], [7, 9]), ([5], [8, 9])], 2) == 1.5


def test_rows_that_begin_alike_reach_down_to_the_packed_time() -> None:
    low, expected, said = hours(plain())
    packed_low, packed, packs = hours(replace(plain(), shared=((4, 40.0), (16, 40.0))))
    assert not said and packs
    assert packed == expected
    assert packed_low < low / 2


def test_mixed_lengths_may_go_without_padding() -> None:
    assert hours(work(lengths=(50, 600), rows=60_000, answer=20))[2]


@pytest.mark.parametrize(
    "train", [{"packing": False}, {"packing": True}, {"loss_on": "all"}], ids=["padded", "sequences", "all learnt"]
)
def test_what_training_will_not_pack_stays_as_it_is(train: dict[str, object]) -> None:
    asked = plain(job(train=train))
    assert hours(replace(asked, shared=((4, 40.0), (16, 40.0)))) == hours(asked)


def test_jobs_with_the_same_rows_have_told_the_packed_time_already() -> None:
    known = Calibration(factor=0.3, low=0.25, high=0.36, n=1, source="1 earlier job of yours", packed=True)
    rows = replace(plain(), shared=((4, 40.0), (16, 40.0)))
    assert hours(rows, known) == hours(plain(), known)
