"""The cost preview as people and programs see it: wide, in 80 columns, without colour, as JSON.

`python -m pytest tests/golden --update-golden` writes them anew.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cost.calibration import Calibration
from cost.passes import PassRow, passes_of
from cost.preview import Candidate, Limits, Preview, compare
from launcher.costjson import as_json
from launcher.costview import view
from tests.unit.cost_jobs import TODAY, estimator, job, offers

HERE = Path(__file__).parent / "cost"
WIDTHS = (80, 120, 160)


def usual() -> Preview:
    """Rows of three lengths, half of whose prompts are the same."""
    rows = [
        PassRow([*range(75), *range(n, n + length - 125)], 50) for n, length in enumerate([200, 400, 600] * 20)
    ]
    told = estimator()
    told = replace(told, work=replace(told.work, passes_by_way=passes_of(rows, [1, 2, 4, 8, 16])))
    return compare(told, [Candidate(offer=one, can_run=one.backend != "skypilot") for one in offers()])


def spot() -> Preview:
    return compare(estimator(), [Candidate(offer=one) for one in offers(spot=True)], sort="price")


def nothing_fits() -> Preview:
    large = job(model="meta-llama/Llama-3.1-70B", tuning={"kind": "full"})
    refused = [("azureml", "no machine has so many GPUs")]
    found = [Candidate(offer=one) for one in offers()[:4]]
    return compare(estimator(large, error=0.3), found, not_offered=refused)


def calibrated() -> Preview:
    known = Calibration(factor=1.25, low=1.1, high=1.4, n=7, source="7 earlier jobs of yours")
    told = replace(estimator(rows=60_000), calibrations=lambda gpu, kind, stack: known if gpu == "L40S" else None)
    found = [Candidate(offer=one) for one in offers()[:-1]]
    return compare(told, found, sort="time", limits=Limits(max_hours=30))


CASES = {"usual": usual, "spot": spot, "nothing_fits": nothing_fits, "calibrated": calibrated}


def text_of(preview: Preview, width: int) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, no_color=True, highlight=False, force_terminal=False)
    console.print(view(preview, width, TODAY))
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def reviewed(path: Path, found: str, update: bool) -> str:
    if update:
        path.parent.mkdir(exist_ok=True)
        path.write_text(found, encoding="utf-8")
    assert path.exists(), "new case: review it with --update-golden"
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("case", CASES)
def test_the_preview_is_the_one_that_was_reviewed(case: str, width: int, pytestconfig: pytest.Config) -> None:
    found = text_of(CASES[case](), width)
    assert found == reviewed(HERE / f"{case}-{width}.txt", found, pytestconfig.getoption("--update-golden"))
    assert max(map(len, found.splitlines())) <= width
    assert "\x1b" not in found


@pytest.mark.parametrize("case", CASES)
def test_the_json_is_the_one_that_was_reviewed(case: str, pytestconfig: pytest.Config) -> None:
    found = json.dumps(as_json(CASES[case]()), indent=1) + "\n"
    assert found == reviewed(HERE / f"{case}.json", found, pytestconfig.getoption("--update-golden"))


def test_no_golden_is_left_over() -> None:
    wanted = {f"{case}-{width}.txt" for case in CASES for width in WIDTHS} | {f"{case}.json" for case in CASES}
    assert {path.name for path in HERE.iterdir()} == wanted


def test_every_offer_has_the_promised_names() -> None:
    names = {
        "backend", "instance_type", "region", "gpu", "gpus", "nodes", "spot", "hourly", "fits", "needed_gib",
        "available_gib", "hours", "total", "why_unpriced", "price_as_of", "chosen",
    }  # fmt: skip
    for case in CASES.values():
        document = as_json(case())
        assert {"offers", "assumptions", "missing"} <= document.keys()
        keys = [tuple(one) for one in document["offers"]]
        assert all(names <= set(one) for one in keys)
        assert len({frozenset(one) for one in keys}) == 1
