"""What an estimate takes for granted, in words: each line stands below every preview."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cost.estimate import OfferEstimate
from cost.extras import KEPT_MONTHS
from cost.phases import FETCH_GBS, INTERRUPTIONS, STARTS, Hours
from cost.prices.table import Price
from cost.work import Work


def assumptions(work: Work, found: Sequence[OfferEstimate]) -> Iterator[str]:
    """The assumptions behind these estimates of one job."""
    for text in work.assumptions:
        yield f"{text} (+-{100 * work.error:.0f} %)"
    timed, priced = _unlike(found)
    if timed:
        yield from _of_time(work, timed)
    if any(one.offer.spot for one in priced):
        yield (
            f"spot: one interruption in {1 / INTERRUPTIONS.value:.0f} h, none to "
            f"{INTERRUPTIONS.value * (1 + INTERRUPTIONS.more) * 10:.0f} in 10 h; each loses half a checkpoint's "
            "interval and the start-up"
        )
    if priced:
        yield (
            f"other $: list prices of disks, {KEPT_MONTHS:g} month in the bucket, one download of the result; "
            "without tax"
        )
    yield from dict.fromkeys(f"{one.offer.backend}: {note}" for one in priced for note in _notes(one) if note)


def _unlike(found: Sequence[OfferEstimate]) -> tuple[list[OfferEstimate], list[OfferEstimate]]:
    """Of all estimates that say the same of time, one; and one of those that say the same of the price."""
    timed: dict[int, OfferEstimate] = {}
    priced: dict[tuple[int, str], OfferEstimate] = {}
    for one in found:
        price, hardware = one.price, one.hardware
        if hardware.hours is None:
            continue
        timed.setdefault(id(hardware), one)
        # One backend, on spot or on demand, has one hardware of its own.
        if isinstance(price, Price) and one.offer.backend != "local":
            priced.setdefault((id(hardware), price.note), one)
    return list(timed.values()), list(priced.values())


def _of_time(work: Work, timed: Sequence[OfferEstimate]) -> Iterator[str]:
    starts = []
    for backend in dict.fromkeys(one.offer.backend for one in timed):
        known = STARTS.get(backend)
        if known and backend != "local":
            low, high = known.start.value * (1 - known.start.less), known.start.value * (1 + known.start.more)
            starts.append(f"{backend} {low / 60:.0f}-{high / 60:.0f} min ({known.note})")
    if starts:
        yield f"start-up: {'; '.join(starts)}"
    yield from dict.fromkeys(_calibrated(timed))
    yield from _passes([one.hardware.hours for one in timed if one.hardware.hours])
    yield f"model: {2 * work.shape.params / 1e9:.1f} GB at {FETCH_GBS:g} GB/s, a fourth to three times as fast"
    if work.judged_elsewhere:
        yield f"judging is not counted: {work.judged_elsewhere} is read where the job runs"
    if work.job.tuning.dora and work.job.tuning.kind != "full":
        yield "DoRA: counted from peft's source, measured nowhere; its band is wider"
    if work.job.train.early_stopping and not work.job.train.dry_run_steps:
        yield "early stopping may end the job sooner; that is not counted"


WAYS = {
    "padded": "rows are padded to the longest of a pass",
    "flat": "rows go end to end, without padding",
    "prefix": "what rows begin with is computed once a pass",
}


def _passes(found: Sequence[Hours]) -> Iterator[str]:
    """How rows share passes, where that is not simply padded: a line a way, on whatever hardware."""
    reached: dict[str, dict[str, None]] = {}
    for hours in found:
        reached.setdefault(hours.way, {}).update(dict.fromkeys(hours.reaches))
    for way, others in reached.items():
        if way != "padded" or others:
            rest = f"; the band reaches to {' and '.join(others)} rows" if others else ""
            yield f"{WAYS[way]}, as training will choose it{rest}"


def _calibrated(timed: Sequence[OfferEstimate]) -> Iterator[str]:
    """Whose measured time the estimate of a GPU is multiplied with."""
    for one in timed:
        known = one.hardware.calibration
        if known is not None:
            where = one.hardware.gpu.name if one.hardware.gpu else "this processor"
            yield f"training on {where}: x {known.factor:.2f} ({known.source})"
            if known.memory is not None and one.hardware.gpu:
                yield f"memory on {where}: x {known.memory:.2f} of what is computed, as measured ({known.source})"


def _notes(one: OfferEstimate) -> Iterator[str]:
    """What the price itself takes for granted."""
    price = one.price
    assert isinstance(price, Price)
    if len(price.components) > 1:
        yield f"{price.components[1].what} is in the price" + (
            "; it does not fall with spot" if price.spot or one.offer.flex else ""
        )
    if price.hourly is None:
        yield price.note
