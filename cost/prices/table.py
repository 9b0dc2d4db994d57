"""What an offer costs an hour: the user's own rate, else the lists, with where each figure comes from."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Literal, NamedTuple, TypeVar

from cost.offers import Offer
from cost.prices.files import EVERYWHERE, Quote, Row
from cost.prices.markets import OWN_CLUSTERS, Market, market, refresh_source
from cost.prices.overlay import Discount, Overlay, Rate
from cost.prices.tokens import TokenPrice, token_price

NO_OVERLAY = Overlay()
SHOWN_REGIONS = 4
BY_REGION = ("sagemaker", "ec2")
"""Sources that are read region by region."""
OWN_RATE = "write its rate into prices.yaml (launch prices show says where that is)"
ANY_CLOUD = "the cheapest of the clouds with a list price; SkyPilot chooses among yours"
FREE = "free: your machine; electricity is not counted (rates in prices.yaml give it a price)"


_ByRegion = Mapping[str, Sequence[Row]]
_Key = TypeVar("_Key")


class Component(NamedTuple):
    """A part of a price, in US dollars an hour."""

    what: str
    hourly: Decimal


class Price(NamedTuple):  # made for every offer, and a dataclass takes three times as long to make
    """US dollars an hour for one machine, and where that stands.

    `hourly` is None where the vendor publishes none; it then lies between `low` and `high`. `provider`,
    `instance_type` and `region` say which list entry it is; `as_of` and `url` are None for the user's own rates
    without a date, `url` also names the user's file and line.
    """

    hourly: Decimal | None
    low: Decimal
    high: Decimal
    spot: bool
    components: tuple[Component, ...]
    provider: str
    instance_type: str
    region: str | None
    as_of: date | None
    url: str | None
    origin: Literal["bundled", "refreshed", "yours"]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Unpriced:
    """Why an offer has no price, in words, and the command that may find one."""

    reason: str
    fix: str | None = None


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Everything known about prices. `rows` hold each machine and region once (see `merged`)."""

    rows: tuple[Row, ...] = ()
    tokens: tuple[TokenPrice, ...] = ()
    overlay: Overlay = NO_OVERLAY

    def price(self, offer: Offer) -> Price | Unpriced:
        """What one of the offer's machines costs an hour; times `offer.nodes` for all of them."""
        return self.lookup(
            offer.backend, offer.instance_type, offer.region, offer.spot, offer.gpus, flex=offer.flex
        )

    def lookup(
        self, backend: str, instance_type: str, region: str | None = None, spot: bool = False,
        gpus: int | None = None, *, flex: bool = False,
    ) -> Price | Unpriced:  # fmt: skip
        """The price of one machine of `backend`, or why there is none.

        `instance_type` is what the offer says, for SkyPilot also `GPU:COUNT`; `region` may then be its infra
        (`gcp/us-central1`, `aws`). Without a region: the cheapest one that is known, named in the answer.
        `gpus`: how many the offer counts, where the same machine comes with more or fewer of them.
        """
        place = _Place.parse(region) if backend == "skypilot" else _Place.of(region)
        kind = self._kind(backend, instance_type)
        rate = None
        if self.overlay.rates:
            rate = self.overlay.rate((backend,), instance_type, region, spot)
        if backend == "local" and (rate is None or (rate.per_gpu and not gpus)):
            return _local(instance_type, spot)
        if rate:
            return _own(rate, backend, instance_type, region, gpus or next((r.gpus for r in _all(kind)), 0))
        rows: Sequence[Row] = _in_region(kind, place.region)
        if place.cloud is not None or gpus:
            rows = [row for row in rows if place.cloud in (None, row.provider) and gpus in (None, 0, row.gpus)]
        found = [self.listed(row, backend, spot, flex) for row in rows]
        if not found:
            return self._no_list(backend, place) or _unknown(backend, instance_type, place, list(_all(kind)), gpus)
        cheapest = _cheapest(found)
        if isinstance(cheapest, Price) and backend == "skypilot" and place.cloud is None:
            return cheapest._replace(note=_joined(cheapest.note, ANY_CLOUD))
        return cheapest

    def dearest_place(self, offer: Offer) -> str | None:
        """`cloud/region` where SkyPilot pays most within the offer's place; None: no list has the offer there.

        In a region it takes the cheapest machine with these GPUs; with none free, it goes on to a dearer region.
        Other backends run in one region: theirs.
        """
        if offer.backend != "skypilot":
            return offer.region
        rows = _all(self._kind(offer.backend, offer.instance_type))
        regions = {row.provider if row.region == EVERYWHERE else f"{row.provider}/{row.region}" for row in rows}
        wanted = _Place.parse(offer.region)
        found = {}
        for text in sorted(regions):
            place = _Place.parse(text)
            if wanted.cloud in (None, place.cloud) and wanted.region in (None, place.region):
                found[text] = self.price(replace(offer, region=text))
        priced = {text: one.high for text, one in found.items() if isinstance(one, Price)}
        return max(priced, key=lambda text: priced[text], default=None)

    def tokens_price(self, provider: str, parameters_b: float) -> TokenPrice | None:
        """What a million training tokens of a model of so many billion parameters cost there."""
        return token_price(self.tokens, provider, parameters_b)

    def _no_list(self, backend: str, place: _Place) -> Unpriced | None:
        """Why no list can have the offers of that backend, or of that place; None where one may."""
        if place.cloud in OWN_CLUSTERS:
            return Unpriced(reason=f"{place.cloud} is a cluster of your own: no list has its price", fix=OWN_RATE)
        if backend in self._by_tokens:
            return Unpriced(reason=f"{backend} bills tokens, not hours")
        if self._providers.isdisjoint(market(backend).providers):
            return Unpriced(reason=f"no price list of backend {backend} is known", fix=OWN_RATE)
        return None

    def _kind(self, backend: str, instance_type: str) -> _ByRegion:
        """The machines of that name, or with those GPUs, on the backend's market."""
        name, providers = instance_type.casefold(), market(backend).providers
        if len(providers) == 1:
            return self._by_type.get((providers[0], name), {})
        gpu, colon, count = name.rpartition(":")
        if colon and count.isdecimal() and backend == "skypilot":
            return self._by_gpu.get((gpu, int(count)), {})
        kinds = [self._by_type.get((provider, name), {}) for provider in providers]
        return {region: rows for kind in kinds for region, rows in kind.items()}

    def rows_of(self, backend: str) -> Iterator[Row]:
        """The machines of a backend's market, in the order of their names."""
        providers = market(backend).providers
        yield from sorted((row for row in self.rows if row.provider in providers), key=lambda row: row.key)

    def listed(self, row: Row, backend: str, spot: bool, flex: bool = False) -> Price | Unpriced:
        """The price of one machine in one place, with the backend's fee and the user's rate or discount."""
        discount = None
        if self.overlay.rates or self.overlay.discounts:
            names = (backend, row.provider) if backend == "skypilot" else (backend,)
            if rate := self.overlay.rate(names, row.instance_type, row.region, spot):
                return _own(rate, row.provider, row.instance_type, row.region, row.gpus)
            discount = self.overlay.discount(names, row.instance_type, row.region, spot)
        if spot:
            return _spot(row, market(backend), discount, self.listed(row, backend, False))
        on_demand = _on_demand(row, market(backend), discount)
        return _flexible(on_demand, market(backend)) if flex else on_demand

    @functools.cached_property
    def _by_tokens(self) -> frozenset[str]:
        return frozenset(one.provider for one in self.tokens)

    @functools.cached_property
    def _providers(self) -> frozenset[str]:
        return frozenset(row.provider for row in self.rows)

    @functools.cached_property
    def _by_type(self) -> Mapping[tuple[str, str], _ByRegion]:
        return _index(((row.provider, row.instance_type.casefold()), row) for row in self.rows)

    @functools.cached_property
    def _by_gpu(self) -> Mapping[tuple[str, int], _ByRegion]:
        clouds = market("skypilot").providers
        return _index(((row.gpu.casefold(), row.gpus), row) for row in self.rows if row.provider in clouds)


def merged(*lists: Iterable[Row]) -> tuple[Row, ...]:
    """Each machine and region once: a later list wins over an earlier one, unless its price is older."""
    found: dict[tuple[str, str, str], Row] = {}
    for rows in lists:
        for row in rows:
            before = found.get(row.key)
            found[row.key] = row if before is None else _newer(before, row)
    return tuple(found.values())


def _newer(before: Row, after: Row) -> Row:
    return replace(
        after,
        gpu_memory_gib=after.gpu_memory_gib or before.gpu_memory_gib,
        vcpus=after.vcpus or before.vcpus,
        memory_gib=after.memory_gib or before.memory_gib,
        on_demand=_newest(before.on_demand, after.on_demand),
        spot=_newest(before.spot, after.spot),
    )


def _newest(before: Quote | None, after: Quote | None) -> Quote | None:
    if before is None or after is None:
        return after or before
    return before if before.as_of > after.as_of else after


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where: a cloud of SkyPilot's (None: any) and a region (None: any)."""

    cloud: str | None = None
    region: str | None = None

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def of(cls, region: str | None) -> _Place:
        """A region of a backend that has one cloud."""
        return cls(region=region)

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def parse(cls, infra: str | None) -> _Place:
        """`aws/us-east-1`, `gcp`, `*/us-east-1`, `us-east-1` (a region alone has no slash and is no cloud)."""
        if infra is None:
            return cls()
        head, slash, rest = infra.partition("/")
        head = head.casefold()
        if slash:
            cloud, region = (None if head == "*" else head), rest.partition("/")[0]
            return cls(cloud=cloud, region=None if region in ("", "*") else region)
        known = head in (*market("skypilot").providers, *OWN_CLUSTERS)
        return cls(cloud=head) if known else cls(region=infra)


def _index(rows: Iterable[tuple[_Key, Row]]) -> Mapping[_Key, _ByRegion]:
    found: dict[_Key, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for key, row in rows:
        found[key][row.region].append(row)
    return {key: dict(by_region) for key, by_region in found.items()}


def _all(kind: _ByRegion) -> Iterator[Row]:
    for rows in kind.values():
        yield from rows


def _in_region(kind: _ByRegion, region: str | None) -> Sequence[Row]:
    if region is None:
        return next(iter(kind.values())) if len(kind) == 1 else list(_all(kind))
    return (*kind.get(region, ()), *kind.get(EVERYWHERE, ()))


def _cheapest(found: Sequence[Price | Unpriced]) -> Price | Unpriced:
    """The cheapest by the most that it can cost; the first reason where none has a price."""
    if len(found) == 1:
        return found[0]
    priced = [one for one in found if isinstance(one, Price)]
    return min(priced, key=lambda one: one.high) if priced else found[0]


def _on_demand(row: Row, of: Market, discount: Discount | None) -> Price | Unpriced:
    quote = row.on_demand
    if quote is None:
        return Unpriced(reason=f"{row.instance_type} in {row.region} has a spot price only")
    return _priced(row, quote, of, quote.hourly, quote.hourly, discount, spot=False)


def _flexible(on_demand: Price | Unpriced, of: Market) -> Price | Unpriced:
    """Below on demand by nobody knows how much; the fee stays.

    Example: $10 and a fee of 1.50, at least 0.4 of the former: 5.50 to 11.50.
    """
    if isinstance(on_demand, Unpriced) or of.flex_floor is None:
        return on_demand
    machine = on_demand.components[0].hourly
    low = on_demand.high - machine * (1 - of.flex_floor)
    return on_demand._replace(hourly=None, low=low, note=_joined(on_demand.note, of.flex_note))


def _spot(row: Row, of: Market, discount: Discount | None, on_demand: Price | Unpriced) -> Price | Unpriced:
    if of.spot_floor is not None:
        if isinstance(on_demand, Unpriced):
            return on_demand
        note = f"no spot price is published: 0-{100 * (1 - of.spot_floor):.0f} % below on demand, unknown"
        return on_demand._replace(hourly=None, low=on_demand.high * of.spot_floor, spot=True, note=note)
    quote = row.spot
    if quote is None:
        return Unpriced(reason=f"no spot price of {row.instance_type} in {row.region} is known")
    if of.fee and row.on_demand is None:
        return Unpriced(reason=f"{of.fee_name}: the on-demand price of {row.instance_type} is not known")
    base = row.on_demand.hourly if row.on_demand else quote.hourly
    price = _priced(row, quote, of, quote.hourly, base, discount, spot=True)
    if isinstance(on_demand, Price) and price.high > on_demand.high:
        return Unpriced(
            reason=f"the spot price of {row.instance_type} in {row.region}, {price.high:.4f} ({quote.as_of}), is "
            f"above on demand, {on_demand.high:.4f}: on demand is cheaper, or one of them is out of date",
            fix=f"launch prices refresh --source {refresh_source(row.provider)}",
        )
    return price._replace(note=_joined(price.note, of.spot_note)) if of.spot_note else price


def _priced(
    row: Row, quote: Quote, of: Market, hourly: Decimal, fee_base: Decimal, discount: Discount | None, spot: bool
) -> Price:
    what = f"{row.provider} spot" if spot else f"{row.provider} on demand"
    components: tuple[Component, ...] = (Component(what=what, hourly=hourly),)
    total, note = hourly, quote.note
    if of.fee:
        fee = fee_base * of.fee
        components = (*components, Component(what=of.fee_name, hourly=fee))
        total += fee
    if discount:
        less = f"less {discount.percent:f} % ({discount.note or discount.where})"
        # What was negotiated is the machine's price: the backend's fee stays that of the list's.
        machine, *fees = components
        components = (machine._replace(hourly=machine.hourly * discount.factor), *fees)
        total, note = sum((one.hourly for one in components), Decimal(0)), f"{less}; {note}" if note else less
    return Price(
        hourly=total,
        low=total,
        high=total,
        spot=spot,
        components=components,
        provider=row.provider,
        instance_type=row.instance_type,
        region=None if row.region == EVERYWHERE else row.region,
        as_of=quote.as_of,
        url=quote.url,
        origin=quote.origin,
        note=note,
    )


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _own(rate: Rate, backend: str, instance_type: str, region: str | None, gpus: int | None) -> Price | Unpriced:
    if rate.per_gpu and not gpus:
        return Unpriced(
            reason=f"your rate ({rate.where}) is for a GPU, and {instance_type} counts none",
            fix="give it unit: USD/instance-hour",
        )
    hourly = rate.hourly * (gpus or 1) if rate.per_gpu else rate.hourly
    return Price(
        hourly=hourly,
        low=hourly,
        high=hourly,
        spot=rate.spot,
        components=(Component(what="your rate", hourly=hourly),),
        provider=backend,
        instance_type=instance_type,
        region=region,
        as_of=rate.as_of,
        url=rate.where,
        origin="yours",
        note=rate.note,
    )


def _local(instance_type: str, spot: bool) -> Price:
    free = Decimal(0)
    return Price(
        hourly=free, low=free, high=free, spot=spot, components=(), provider="local", instance_type=instance_type,
        region=None, as_of=None, url=None, origin="yours", note=FREE,
    )  # fmt: skip


def _unknown(backend: str, instance_type: str, place: _Place, kind: Sequence[Row], gpus: int | None) -> Unpriced:
    """Which part of what was asked for no list has: the machine, its cloud, its number of GPUs, its region."""
    found = [row for row in kind if place.cloud in (None, row.provider)]
    if not found:
        where = place.cloud or backend
        elsewhere = sorted({row.provider for row in kind})
        source = "skypilot" if backend == "skypilot" else refresh_source(market(backend).providers[0])
        return Unpriced(
            reason=f"no price of {instance_type} on {where} is known"
            + (f"; there is one for {', '.join(elsewhere)}" if elsewhere else ""),
            fix=f"launch prices refresh --source {source}",
        )
    fitting = [row for row in found if gpus in (None, 0, row.gpus)]
    if not fitting:
        known = " or ".join(sorted({str(row.gpus) for row in found}))
        return Unpriced(reason=f"the known price of {instance_type} is with {known} GPU, not {gpus}", fix=OWN_RATE)
    regions = sorted({row.region for row in fitting})
    shown = ", ".join(regions[:SHOWN_REGIONS]) + (", ..." if len(regions) > SHOWN_REGIONS else "")
    source = refresh_source(fitting[0].provider)
    return Unpriced(
        reason=f"no price of {instance_type} in {place.region} is known; there is one for {shown}",
        fix=f"launch prices refresh --source {source}"
        + (f" --region {place.region}" if source in BY_REGION else ""),
    )
