"""What to change so that a job fits on a GPU that is too small for it, and what the change costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from cost.estimate import Estimator, OfferEstimate
from cost.offers import Offer
from cost.recipe import micro_batches
from launcher.spec import JobSpec


@dataclass(frozen=True, kw_only=True)
class Change:
    """The smallest change with which the job fits; `difference` in US dollars to what it would cost without."""

    what: str
    settings: tuple[str, ...]
    """What to give to --set."""
    difference: Decimal | None


class _Helping(NamedTuple):
    """A changed job that fits on one kind of hardware."""

    what: str
    settings: tuple[str, ...]
    estimator: Estimator


class Changes:
    """Finds the change for one offer after the other; each changed job is worked out once."""

    def __init__(self, estimator: Estimator, others: Iterable[OfferEstimate]) -> None:
        self._estimator = estimator
        self._changed: dict[tuple[str, ...], Estimator] = {}
        self._by_ranks: dict[int, Sequence[tuple[str, tuple[str, ...], JobSpec]]] = {}
        self._fitting: dict[str, OfferEstimate] = {}
        least: dict[str, Decimal] = {}
        self._helping: dict[int, _Helping | None] = {}
        """id of a Hardware, of which the estimator has one for all offers alike -> what helps there."""
        for one in others:
            if one.hardware.fit == "yes" and one.total is not None:
                backend, usual = one.offer.backend, one.total.usual
                if backend not in least or usual < least[backend]:
                    self._fitting[backend], least[backend] = one, usual

    def smallest(self, short: OfferEstimate) -> Change | None:
        """The change for an offer that lacks memory; None when nothing known helps.

        In order: fewer rows a pass, gradient checkpointing, a 4-bit base, then the cheapest of the other offers
        on the same backend that fits. Surely fits goes before probably fits.
        """
        key = id(short.hardware)
        if key not in self._helping:
            self._helping[key] = self._helps(short.offer)
        found = self._helping[key]
        if found is None:
            return self._next_gpu(short)
        changed = found.estimator.at(short.offer, short.price)
        return Change(what=found.what, settings=found.settings, difference=_difference(changed, short))

    def _helps(self, offer: Offer) -> _Helping | None:
        """The first variant that surely fits, else the first that probably does."""
        ranks = max(1, offer.gpus) * offer.nodes
        probable: _Helping | None = None
        for what, settings, job in self._variants(ranks):
            changed = self._of(settings, job)
            fit = changed.hardware(offer).fit
            if fit == "yes":
                return _Helping(what, settings, changed)
            if fit == "tight" and probable is None:
                probable = _Helping(what, settings, changed)
        return probable

    def _variants(self, ranks: int) -> Sequence[tuple[str, tuple[str, ...], JobSpec]]:
        if ranks not in self._by_ranks:
            self._by_ranks[ranks] = tuple(variants(self._estimator.work.job, ranks))
        return self._by_ranks[ranks]

    def _of(self, settings: tuple[str, ...], job: JobSpec) -> Estimator:
        if settings not in self._changed:
            self._changed[settings] = self._estimator.changed(job)
        return self._changed[settings]

    def _next_gpu(self, short: OfferEstimate) -> Change | None:
        best = self._fitting.get(short.offer.backend)
        if best is None:
            return None
        gpu, gpus = best.offer.gpu, best.offer.gpus
        settings: tuple[str, ...] = (f"resources.gpu={gpu}",)
        if gpus != self._estimator.work.job.resources.gpus:
            settings = (*settings, f"resources.gpus={gpus}")
        what = f"{gpu if gpus == 1 else f'{gpus}x {gpu}'} ({best.offer.instance_type})"
        return Change(what=what, settings=settings, difference=_difference(best, short))


def variants(job: JobSpec, ranks: int) -> Iterator[tuple[str, tuple[str, ...], JobSpec]]:
    """(in words, settings, the job so changed), the least intrusive first."""
    split = micro_batches(job.train.batch_size, job.train.micro_batch, ranks)
    micro = split[0] if split else 1
    smaller = [m for m in (8, 4, 2, 1) if m < micro]
    for rows in smaller:
        yield _variant(job, f"micro-batch {rows}", {"train.micro_batch": rows})
    one: dict[str, Any] = {"train.micro_batch": 1} if smaller else {}
    if job.train.gradient_checkpointing is False:
        yield _variant(job, "gradient checkpointing", {"train.gradient_checkpointing": True})
        one["train.gradient_checkpointing"] = True
    if job.tuning.kind == "lora" and not job.output.merged:
        yield _variant(job, "QLoRA", {"tuning.kind": "qlora"})
        if one:
            yield _variant(job, "QLoRA and micro-batch 1", {"tuning.kind": "qlora", **one})
    elif job.tuning.kind == "full":
        yield _variant(job, "LoRA", {"tuning.kind": "lora"})
        yield _variant(job, "QLoRA", {"tuning.kind": "qlora"})
        if one:
            yield _variant(job, "QLoRA and micro-batch 1", {"tuning.kind": "qlora", **one})


def _variant(job: JobSpec, what: str, values: Mapping[str, Any]) -> tuple[str, tuple[str, ...], JobSpec]:
    data = job.model_dump(mode="json")
    for path, value in values.items():
        section, _, name = path.partition(".")
        data[section][name] = value
    settings = tuple(f"{path}={str(value).lower()}" for path, value in values.items())
    return what, settings, JobSpec.model_validate(data)


def _difference(one: OfferEstimate, other: OfferEstimate) -> Decimal | None:
    if one.total is None or other.total is None:
        return None
    return one.total.usual - other.total.usual
