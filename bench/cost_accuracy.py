"""How far the estimate is from measured public runs: `python -m bench.cost_accuracy throughput.csv [--json]`."""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench.cost_rows import Case, NoCase, Row, case_of, complete, is_hf, memory_truth, scored, time_truth
from cost.band import Band, Refusal
from cost.memory import memory
from cost.throughput import micro_batch_s

NAIVE_MFU = 0.40


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One scored figure of one row; `band` is None where the estimate refuses."""

    row: int
    what: str
    group: str
    hf: bool
    truth: float | None
    band: Band | None
    why: str | None = None
    naive: float | None = None

    @property
    def error(self) -> float:
        """Relative error of the expected value. Only where there is a band and a truth."""
        assert self.band is not None and self.truth
        return self.band.expected / self.truth - 1

    @property
    def inside(self) -> bool:
        assert self.band is not None and self.truth
        return self.band.low <= self.truth <= self.band.high

    def as_json(self) -> dict[str, object]:
        band = self.band
        return {
            "row": self.row, "what": self.what, "group": self.group, "low": band.low if band else None,
            "expected": band.expected if band else None, "high": band.high if band else None,
            "truth": self.truth,
        }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--json", action="store_true", help="one object a prediction and line")
    parser.add_argument("--worst", type=int, default=0, help="also list so many rows that are furthest off")
    options = parser.parse_args(argv)
    with options.csv.open(encoding="utf-8-sig", newline="") as file:
        rows = [complete(row) for row in csv.DictReader(file)]
    found = list(predictions(rows))
    if options.json:
        for prediction in found:
            print(json.dumps(prediction.as_json()))
        return 0
    report(rows, found, options.worst)
    return 0


def predictions(rows: Iterable[Mapping[str, object]]) -> Iterable[Prediction]:
    """Every figure that the file marks as scored."""
    for number, row in enumerate(map(complete, rows)):
        if scored(row, "score_time"):
            yield _predict(number, row, "time")
        if scored(row, "score_mem"):
            yield _predict(number, row, "memory")


def _predict(number: int, row: Row, what: str) -> Prediction:
    truth = time_truth(row) if what == "time" else memory_truth(row)
    blank = Prediction(row=number, what=what, group=row["group"], hf=is_hf(row), truth=truth, band=None)
    try:
        case = case_of(row)
        found = _time(case) if what == "time" else memory(case.recipe, case.counted)
    except NoCase as exc:
        return replace(blank, why=str(exc))
    except ArithmeticError as exc:
        return replace(blank, why=f"figures that no run can have: {exc}")
    if isinstance(found, Refusal):
        return replace(blank, why=found.reason)
    if not math.isfinite(found.high):
        return replace(blank, why="figures that no run can have")
    return replace(blank, band=found, naive=_naive_s(case) if what == "time" else None)


def _time(case: Case) -> Band | Refusal:
    found = micro_batch_s(case.recipe)
    if isinstance(found, Refusal) or not case.other_s:
        return found
    other = case.other_s
    return replace(
        found, low=found.low + 0.5 * other, expected=found.expected + other, high=found.high + 1.5 * other
    )


def _naive_s(case: Case) -> float:
    """What most calculators do: 6 FLOPs a parameter and token at 40 % of the peak."""
    recipe = case.recipe
    return 6 * recipe.shape.params * recipe.tokens / (recipe.gpu.tflops * 1e12 * NAIVE_MFU)


def report(rows: Sequence[Row], found: Sequence[Prediction], worst: int) -> None:
    refused = [p for p in found if p.band is None]
    print(f"{len(found)} scored figures, {len(refused)} refused")
    for why in sorted({p.why or "" for p in refused}):
        print(f"  {sum(p.why == why for p in refused):4d}  {why}")
    known = [p for p in found if p.band is not None and p.truth]
    for title, part in (("HF-style stacks", True), ("the rest", False)):
        for what in ("time", "memory"):
            chosen = [p for p in known if p.hf is part and p.what == what]
            if chosen:
                print(f"\n{what}, {title}")
                _lines(chosen)
    print("\ntime, leave one source out (each generation's `sustained` set by the other sources alone)")
    for title, part in (("HF-style stacks", True), ("the rest", False)):
        _line(title, [e for p, e in _left_out(rows, known) if p.hf is part])
    for p in sorted(known, key=lambda p: -abs(p.error))[:worst]:
        assert p.band is not None
        mark = f"{p.error:+.0%}{'' if p.inside else '  outside'}"
        print(f"  row {p.row:4d} {p.what:6s} {p.group:28s} {p.truth:9.3f} {p.band.expected:9.3f} {mark}")


def _lines(chosen: Sequence[Prediction]) -> None:
    by_source: dict[str, list[Prediction]] = defaultdict(list)
    for p in chosen:
        by_source[p.group].append(p)
    for source, members in sorted(by_source.items()):
        _line(f"  {source}", [p.error for p in members])
    _line("all", [p.error for p in chosen])
    if any(p.naive for p in chosen):
        _line("  naive: 6N at 40 % MFU", [p.naive / p.truth - 1 for p in chosen if p.naive and p.truth])
    inside = sum(p.inside for p in chosen) / len(chosen)
    above = sum(bool(p.band and p.truth and p.truth > p.band.high) for p in chosen) / len(chosen)
    ratio = statistics.median(p.band.high / p.band.low for p in chosen if p.band and p.band.low > 0)
    print(f"    in the band {inside:.0%}, above it {above:.0%}, median high / low {ratio:.2f}")


def _line(name: str, errors: Sequence[float]) -> None:
    if not errors:
        return
    sizes = sorted(map(abs, errors))
    p90 = sizes[math.ceil(0.9 * len(sizes)) - 1]
    print(
        f"  {name:34s} n={len(errors):4d}  median {statistics.median(sizes):6.1%}  p90 {p90:6.1%}"
        f"  bias {statistics.median(errors):+6.1%}"
    )


def _left_out(rows: Sequence[Row], known: Sequence[Prediction]) -> Iterable[tuple[Prediction, float]]:
    """(prediction, its error) when the source's own rows had no say in its generation's `sustained`.

    Every source in turn: the factor on `sustained` that gives the other sources of that generation a median
    error of nought is found, and the source is judged with it. Where no other has that generation, its own stays.
    """
    timed = [p for p in known if p.what == "time"]
    cases = {p.row: case_of(rows[p.row]) for p in timed}
    for source in sorted({_source(p.group) for p in timed}):
        own = [p for p in timed if _source(p.group) == source]
        for generation in sorted({cases[p.row].recipe.gpu.generation for p in own}):
            others = [
                p for p in timed
                if _source(p.group) != source and cases[p.row].recipe.gpu.generation == generation
            ]  # fmt: skip
            factor = _fitted(partial(_errors, others, cases)) if others else 1.0
            members = [p for p in own if cases[p.row].recipe.gpu.generation == generation]
            yield from zip(members, _errors(members, cases, factor), strict=True)


def _source(group: str) -> str:
    return group.split("_")[0]


def _errors(members: Sequence[Prediction], cases: dict[int, Case], factor: float) -> list[float]:
    errors = []
    for p in members:
        case = cases[p.row]
        gpu = replace(case.recipe.gpu, sustained=min(1.0, case.recipe.gpu.sustained * factor))
        band = _time(replace(case, recipe=replace(case.recipe, gpu=gpu)))
        assert isinstance(band, Band) and p.truth
        errors.append(band.expected / p.truth - 1)
    return errors


def _fitted(errors: Callable[[float], list[float]]) -> float:
    """The factor between 0.5 and 1.5 at which the median error is nought: more speed, less time."""
    low, high = 0.5, 1.5
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if statistics.median(errors(middle)) > 0 else (low, middle)
    return (low + high) / 2


if __name__ == "__main__":
    sys.exit(main())
