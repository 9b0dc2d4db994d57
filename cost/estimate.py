"""What a job is expected to cost on one offer: hours x price, what else is billed, whether it fits at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import NamedTuple

from cost.band import Band, Refusal
from cost.bill import FREE, ZERO, Bill, Item, Money
from cost.calibration import PADDED, Calibration, Training, in_way
from cost.gpus import Gpu, find_gpu
from cost.memory import Fit, corrected, fits, memory
from cost.offers import Offer
from cost.packing import Ways, peak_of, ways_of
from cost.phases import Hours, hours_of
from cost.prices.table import Price, Prices, Unpriced
from cost.processor import PROCESSOR, nominal_step_s, processor_hours, processor_recipe
from cost.recipe import Recipe, recipe_of
from cost.work import Work
from launcher.errors import ConfigError
from launcher.spec import JobSpec

Calibrations = Callable[[str, str, str], Calibration | None]
"""(GPU, kind of tuning, stack) -> what earlier jobs say about such jobs."""


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """US dollars, low to high; None is unknown, never zero. `hours` are those that are billed.

    `ceiling` is what the job costs at most: at the hard stop, whatever happens before.
    """

    low: Decimal | None
    expected: Decimal | None
    high: Decimal | None
    assumptions: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    ceiling: Decimal | None = None
    hours: Hours | None = None
    tokens: float | None = None
    """Tokens that the job trains on, all epochs together."""
    training: Training | None = None
    """What the model expects of a step: the ledger compares it with what was measured."""
    rates: Mapping[str, Decimal] = field(default_factory=dict)
    """US dollars an hour of each machine that the vendor may give, where it has several to choose from."""


def estimate(offer: Offer, most_hours: float) -> CostEstimate:
    """The estimate of one job on `offer` that is stopped after `most_hours`. Your own machine is free
    unless it has a rate in prices.yaml.

    `high` is what the job can cost at most, 4 h at $2 an hour: $8; what it will take is not known here.
    """
    if offer.backend == "local" and not offer.hourly:
        return CostEstimate(
            low=ZERO, expected=ZERO, high=ZERO, ceiling=ZERO,
            assumptions=("your own machine: electricity is not counted",),
        )  # fmt: skip
    if offer.hourly is None:
        return CostEstimate(low=None, expected=None, high=None, missing=("the price of this offer",))
    ceiling = round(offer.hourly * Decimal(most_hours), 2)
    return CostEstimate(
        low=None, expected=None, high=ceiling, ceiling=ceiling,
        assumptions=(f"at the hard stop after {most_hours:g} h, ${offer.hourly:.2f} an hour",),
        missing=("how long the job will take", "storage and transfer"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a job does on GPUs of one kind and number, whoever rents them out."""

    gpu: Gpu | None
    recipe: Recipe | None
    needed: Band | None
    available_gib: float | None
    fit: Fit | None
    hours: Hours | None
    why_not: str | None = None
    """Why memory or time are not known."""
    training: Training | None = None
    """On a processor, the nominal step that a calibration is the factor of."""
    calibration: Calibration | None = None
    """What earlier jobs or a probe made of the hours."""
    ways: Ways | None = None
    """How rows share passes."""
    peak_gib: float | None = None
    """Tensors on each GPU at the peak of the job's own steps, as the model has it."""


class OfferEstimate(NamedTuple):  # one for every offer, as Price is
    """One job on one offer. `total` is None where it can't be said, `why_unpriced` says why."""

    offer: Offer
    price: Price | Unpriced
    hardware: Hardware
    total: Money | None = None
    bill: Bill | None = None
    why_unpriced: str | None = None

    @property
    def items(self) -> tuple[Item, ...]:
        """The total line by line, training and judging first; empty where there is none or it is free."""
        if self.bill is None or not isinstance(self.price, Price):
            return ()
        return tuple(self.bill.items(self.price, self.offer.nodes))

    @property
    def missing(self) -> tuple[str, ...]:
        """What the total leaves out: then it says "at least"."""
        return self.bill.missing if self.bill else ()

    @property
    def hourly(self) -> Decimal | None:
        """US dollars an hour for all nodes together; None: unknown, or somewhere between the price's bounds."""
        if isinstance(self.price, Price) and self.price.hourly is not None:
            return self.price.hourly * self.offer.nodes
        return None

    @property
    def compute(self) -> Item | None:
        """Training and judging."""
        return next(iter(self.items), None)

    @property
    def other(self) -> Money | None:
        """Everything else: start-up, spot rework, fee, disk, bucket, transfer."""
        rest = self.items[1:]
        if not rest:
            return None
        known = [item.expected for item in rest]
        return Money(
            low=sum((item.low for item in rest), ZERO),
            expected=None if None in known else sum((one for one in known if one is not None), ZERO),
            high=sum((item.high for item in rest), ZERO),
        )


@dataclass(kw_only=True)
class Estimator:
    """Estimates of one job, each hardware worked out once however many places rent it out."""

    work: Work
    prices: Prices
    calibrations: Calibrations = field(default=lambda gpu, kind, stack: None)
    _known: dict[tuple[object, ...], Hardware] = field(default_factory=dict, repr=False)
    _bills: dict[tuple[int, str], Bill | None] = field(default_factory=dict, repr=False)

    def __call__(self, offer: Offer) -> OfferEstimate:
        """The estimate of the job on `offer`, priced from the lists."""
        return self.at(offer, self.prices.price(offer))

    def at(self, offer: Offer, price: Price | Unpriced) -> OfferEstimate:
        """The estimate of the job on `offer` at a price that is known already."""
        hardware = self.hardware(offer)
        bill = None
        if isinstance(price, Price) and price.high and hardware.hours is not None:
            key = (id(hardware), price.provider)
            bill = self._bills.get(key)
            if bill is None:
                bill = self._bills[key] = bill_of(self.work, offer, price, hardware)
        return priced(offer, price, hardware, bill)

    def hardware(self, offer: Offer) -> Hardware:
        """Memory and hours on the offer's GPUs."""
        key = (offer.backend, offer.gpu, offer.gpu_memory_gib, offer.gpus, offer.nodes, offer.spot)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = hardware_of(self.work, offer, self.calibrations)
        return found

    def changed(self, job: JobSpec) -> Estimator:
        """The same for another job on the same rows."""
        return Estimator(work=replace(self.work, job=job), prices=self.prices, calibrations=self.calibrations)


def hardware_of(work: Work, offer: Offer, calibrations: Calibrations) -> Hardware:
    """Memory and hours of the job on the offer's GPUs, or why they are not known."""
    if offer.gpu is None:
        return _on_processor(work, calibrations)
    try:
        gpu = find_gpu(offer.gpu, offer.gpu_memory_gib)
    except ConfigError as exc:
        return _unknown(exc.message)
    recipe = recipe_of(work.job, work.shape, gpu, work.rows, gpus=max(1, offer.gpus), nodes=offer.nodes)
    if recipe is None:
        return _unknown(_why_no_recipe(work.job, max(1, offer.gpus) * offer.nodes), gpu)
    needed = memory(recipe)
    if isinstance(needed, Refusal):
        return _unknown(needed.reason, gpu)
    ways = ways_of(work, recipe)
    peak = memory(peak_of(work, ways.chosen), "allocated")
    calibration = _calibrated(calibrations, gpu.name, work.job.tuning.kind, recipe.stack.name, ways)
    if calibration is not None and calibration.memory is not None:
        needed = corrected(needed, calibration.memory)
    hours = hours_of(work, ways, offer.backend, offer.spot, calibration)
    return Hardware(
        gpu=gpu,
        recipe=recipe,
        needed=needed,
        available_gib=gpu.memory_gib,
        fit=fits(needed, gpu.memory_gib),
        hours=None if isinstance(hours, Refusal) else hours,
        why_not=hours.reason if isinstance(hours, Refusal) else None,
        calibration=calibration,
        ways=ways,
        peak_gib=None if isinstance(peak, Refusal) else peak.expected,
    )


def _calibrated(calibrations: Calibrations, gpu: str, kind: str, stack: str, ways: Ways) -> Calibration | None:
    """What is known of rows in this way, else what padded rows say of the GPU."""
    own = calibrations(gpu, kind, in_way(stack, ways.chosen.kind))
    if own is not None or ways.chosen.kind == PADDED:
        return own
    padded = calibrations(gpu, kind, stack)
    return None if padded is None or padded.packed else padded


def _on_processor(work: Work, calibrations: Calibrations) -> Hardware:
    """Only a job that was measured on this machine says how long another takes."""
    recipe = processor_recipe(work)
    ways = ways_of(work, recipe) if recipe else None
    step_s = nominal_step_s(ways.chosen.recipe) if ways else None
    if recipe is None or ways is None or step_s is None:
        return _unknown(_why_no_recipe(work.job, 1) if recipe is None else "this method is not modelled")
    kind = work.job.tuning.kind
    training = Training(gpu=PROCESSOR.name, kind=kind, stack=recipe.stack.name, step_s=step_s,
                        way=ways.chosen.kind)  # fmt: skip
    found = replace(
        _unknown("how fast this processor trains is measured by launch cost --probe, or by a first job here"),
        training=training,
    )
    calibration = _calibrated(calibrations, training.gpu, kind, training.stack, ways)
    if calibration is None:
        return found
    hours = processor_hours(work, calibration)
    if isinstance(hours, Refusal):
        return replace(found, why_not=hours.reason)
    return replace(found, recipe=recipe, hours=hours, why_not=None, calibration=calibration)


def _unknown(why: str, gpu: Gpu | None = None) -> Hardware:
    available = gpu.memory_gib if gpu else None
    return Hardware(gpu=gpu, recipe=None, needed=None, available_gib=available, fit=None, hours=None, why_not=why)


def _why_no_recipe(job: JobSpec, ranks: int) -> str:
    if job.train.batch_size % ranks:
        return f"train.batch_size {job.train.batch_size} can't be shared out over {ranks} GPUs"
    return f"tuning.targets {job.tuning.targets!r}: how large these layers are is not known here"


def bill_of(work: Work, offer: Offer, price: Price, hardware: Hardware) -> Bill | None:
    """What the job is billed for there; None where its hours are not known."""
    if hardware.hours is None or hardware.recipe is None:
        return None
    return Bill(work, hardware.recipe, hardware.hours, offer.backend, price.provider)


def priced(offer: Offer, price: Price | Unpriced, hardware: Hardware, bill: Bill | None) -> OfferEstimate:
    """Hours x price, and what else is billed.

    Example: 0.8-1.0-1.3 h of use and 0.1-0.2-0.4 h around them at $2: $1.60-2.00-2.60 and $0.20-0.40-0.80 make
    $1.80-2.40-3.40, and what disk and bucket cost.
    """
    if isinstance(price, Unpriced):
        return OfferEstimate(offer=offer, price=price, hardware=hardware, why_unpriced=price.reason)
    if not price.high:
        return OfferEstimate(offer=offer, price=price, hardware=hardware, total=FREE)
    if bill is None:
        why = f"time unknown: {hardware.why_not}"
        return OfferEstimate(offer=offer, price=price, hardware=hardware, why_unpriced=why)
    total = bill.total(price, offer.nodes)
    return OfferEstimate(offer=offer, price=price, hardware=hardware, total=total, bill=bill)


def bounded(found: OfferEstimate, ceiling: CostEstimate, work: Work) -> CostEstimate:
    """The estimate that a plan carries: the band as far as it is known, never above the hard stop."""
    hours, tokens = found.hardware.hours, work.trained_tokens
    if found.total is None:
        why = (found.why_unpriced,) if found.why_unpriced else ()
        return replace(ceiling, missing=(*ceiling.missing, *why), hours=hours, tokens=tokens)
    total, most = found.total, ceiling.ceiling

    def at_most(value: Decimal | None) -> Decimal | None:
        return value if value is None or most is None else min(value, most)

    return CostEstimate(
        low=at_most(total.low), expected=at_most(total.expected), high=at_most(total.high),
        assumptions=ceiling.assumptions, missing=found.missing, ceiling=most,
        hours=hours, tokens=tokens,
    )  # fmt: skip
