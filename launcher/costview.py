"""What `launch cost`, `launch plan` and `launch run` show of an estimate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cost.bill import Money
from cost.estimate import OfferEstimate
from cost.phases import Hours
from cost.preview import ByTokens, Line, Preview
from cost.prices.files import latest_day
from cost.prices.table import Price
from cost.work import Work
from launcher.screen import facts

if TYPE_CHECKING:
    from backends.base import Plan
    from launcher.planning import Planned

WIDE, WIDER = 96, 118
"""Columns from which the table also shows bands of time and price age, and what the total consists of."""
SHOWN, SHOWN_SHORT, SHOWN_PLAN = 10, 3, 5
"""Lines that are shown without --all: of those that fit, of those that lack memory; in a plan."""


def view(preview: Preview, width: int, today: date, everything: bool = False) -> RenderableType:
    """The whole preview: total, table, multiplication, what is assumed, what is not priced."""
    shown = shown_lines(preview, everything)
    parts: list[RenderableType] = [headline(preview), Text(), table(preview, shown, width, today)]
    parts.append(Text(_count_line(preview, shown, everything), style="dim"))
    if preview.chosen is not None:
        parts += [Text(), multiplication(preview.estimator.work, preview.chosen.estimate)]
    parts += [Text(), *notes(preview, everything)]
    return Group(*parts)


def planned(found: Planned, width: int) -> RenderableType | None:
    """What a plan says of its cost beside the sum: this backend's offers, the multiplication, what is assumed.

    None where nothing but the hard stop is known.
    """
    choice = found.choice
    if choice is None or choice.preview is None or choice.line is None:
        return None
    preview, line = choice.preview, choice.line
    hardware = line.estimate.hardware
    if hardware.hours is None:
        return None
    parts: list[RenderableType] = [Text()]
    if found.plan.offer.backend != "local":
        at = preview.lines.index(line)
        near = [one for one in preview.lines[:SHOWN_PLAN] if one.estimate.total is not None]
        near = near if line in near else [*near, preview.lines[at]]
        parts += [table(preview, near, width, latest_day()), Text()]
    parts += [multiplication(preview.estimator.work, line.estimate), Text()]
    parts += [Text(f"* {text}", style="dim") for text in preview.assumptions]
    parts += [Text(warning, style="yellow") for warning in warnings(found.plan, line)]
    return Group(*parts, Text("what it costs elsewhere: launch cost", style="dim"), Text())


def warnings(plan: Plan, line: Line) -> Iterator[str]:
    """What makes the job fail there, or stop before its end."""
    hardware, hours = line.estimate.hardware, plan.estimate.hours
    if hardware.fit == "no" and hardware.needed and hardware.available_gib:
        short = hardware.needed.expected - hardware.available_gib
        fix = f": {line.change.what} fits (--set {' --set '.join(line.change.settings)})" if line.change else ""
        yield (
            f"it needs {hardware.needed.expected:.1f} GiB of {hardware.available_gib:.1f} on each GPU, "
            f"{short:.1f} short{fix}"
        )
    elif hardware.fit == "tight" and hardware.needed:
        yield f"memory is tight: up to {hardware.needed.high:.1f} GiB of {hardware.available_gib:.1f}"
    stop = plan.job.resources.max_hours
    if hours is not None and stop is not None and hours.high > stop:
        likely = "likely" if hours.expected > stop else "possibly"
        yield f"it {likely} stops before its end: {hours_in_words(hours)}, and resources.max_hours is {stop:.2g}"


def shown_lines(preview: Preview, everything: bool) -> list[Line]:
    """The best ones, the chosen one among them, this machine, and a few that lack memory; or all with a total."""
    priced = [line for line in preview.lines if line.estimate.total is not None]
    if everything:
        return priced
    fitting = [line for line in priced if line.estimate.hardware.fit != "no"]
    short = [line for line in priced if line.estimate.hardware.fit == "no"]
    first = [*fitting[:SHOWN], *short[:SHOWN_SHORT]]
    return [line for line in priced if line in first or line.chosen or line.estimate.offer.backend == "local"]


def headline(preview: Preview) -> Text:
    """The total, where, and why there."""
    chosen = preview.chosen
    if chosen is None:
        return Text(f"no total: {preview.reason}", style="bold yellow")
    found = chosen.estimate
    line = Text()
    line.append(total_in_words(found), style="bold")
    line.append(f" on {_place(found)}")
    if found.hardware.hours is not None:
        line.append(f", {hours_in_words(found.hardware.hours)}")
    line.append(f"\n{preview.reason}", style="dim")
    return line


def total_in_words(found: OfferEstimate) -> str:
    """`$2.40 (1.80 to 3.40)`, `$0.04 to 0.45`, `at least ...`, `free: your machine`, `unknown`."""
    total = found.total
    if total is None:
        return "unknown"
    if total.high == 0:
        return "free: your machine" if found.offer.backend == "local" else "free"
    least = "at least " if found.missing else ""
    return f"{least}${_money(total)}"


def hours_in_words(hours: Hours) -> str:
    """`12 min (7 to 25)` below two hours, else `5.3 h (4.1 to 7.9)`."""
    if hours.high < 2:
        low, usual, high = (f"{60 * value:.0f}" for value in (hours.low, hours.expected, hours.high))
        return f"{usual} min ({low} to {high})"
    return f"{_hours(hours.expected)} h ({_hours(hours.low)} to {_hours(hours.high)})"


def table(preview: Preview, lines: Sequence[Line], width: int, today: date) -> Table:
    """One row an offer, the chosen one marked, the rest muted."""
    found = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    wide, wider = width >= WIDE, width >= WIDER
    found.add_column("", no_wrap=True)
    found.add_column("BACKEND", no_wrap=True)
    found.add_column("HARDWARE", overflow="fold")
    for name in _figure_columns(wide, wider):
        found.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        cells = _cells(line, wide, wider, today)
        mark = Text(">", style="bold green") if line.chosen else Text("")
        style = "bold" if line.chosen else "" if preview.chosen is None else "dim"
        names = Text(line.estimate.offer.backend), Text(_hardware(line.estimate))
        found.add_row(mark, *names, *(Text(c) if isinstance(c, str) else c for c in cells), style=style)
    for one in preview.by_tokens:
        found.add_row("", one.price.provider, "by the token", *_token_cells(one, wide, wider, today), style="dim")
    return found


def _figure_columns(wide: bool, wider: bool) -> list[str]:
    return [
        "GiB", "TIME h*" if wide else "h*", "$/h", *(["COMPUTE $", "OTHER $*"] if wider else []), "TOTAL $",
        *(["PRICED"] if wide else []),
    ]  # fmt: skip


def _cells(line: Line, wide: bool, wider: bool, today: date) -> list[str | Text]:
    """Fit, time, price an hour, parts, total, age."""
    found = line.estimate
    hours = found.hardware.hours
    if hours is None:
        time = "unknown"
    elif wide:
        time = f"{_hours(hours.expected)} ({_hours(hours.low)}-{_hours(hours.high)})"
    else:
        time = _hours(hours.expected)
    parts = [_part(found, "compute"), _part(found, "other")] if wider else []
    return [_fit(line), time, _rate(found), *parts, _total(line), *([_age(found, today)] if wide else [])]


def _token_cells(one: ByTokens, wide: bool, wider: bool, today: date) -> list[str]:
    age = [f"{(today - one.price.as_of).days} d"] if wide else []
    return ["-", "unknown", "-", *(["-", "-"] if wider else []), f"{one.low:.2f}-{one.high:.2f}", *age]


def _fit(line: Line) -> Text:
    """Needed and available: `16.7/22.0`, `21.8 ~ 22.0` where it is tight, `23.5 > 22.0` where it does not fit."""
    hardware = line.estimate.hardware
    if hardware.needed is None or hardware.available_gib is None:
        return Text("unknown")
    mark, style = {"no": (" > ", "red"), "tight": (" ~ ", "yellow")}.get(hardware.fit or "", ("/", ""))
    return Text(f"{hardware.needed.expected:.1f}{mark}{hardware.available_gib:.1f}", style=style)


def _rate(found: OfferEstimate) -> str:
    if found.hourly is not None:
        return "free" if found.hourly == 0 else _dollars(found.hourly)
    price = found.price
    return f"<= {_dollars(price.high * found.offer.nodes)}" if isinstance(price, Price) else "unknown"


def _part(found: OfferEstimate, which: str) -> str:
    part = found.compute if which == "compute" else found.other
    if part is None:
        return "0" if found.total is not None and found.total.high == 0 else "unknown"
    return f"<= {_dollars(part.high)}" if part.expected is None else _dollars(part.expected)


def _total(line: Line) -> Text:
    """The total; for what does not fit, the smallest change that does and what it costs more."""
    found = line.estimate
    if found.hardware.fit == "no":
        if line.change is None:
            return Text("nothing known helps", style="red")
        more = "" if line.change.difference is None else f": {_signed(line.change.difference)}"
        return Text(f"{line.change.what}{more}", style="yellow")
    if found.total is None:
        return Text("unknown")
    if found.total.high == 0:
        return Text("free")
    if found.missing:
        return Text(f"at least {found.total.usual:.2f}")
    return Text(_money(found.total, "-"))


def _age(found: OfferEstimate, today: date) -> str:
    price = found.price
    if not isinstance(price, Price) or price.as_of is None:
        return "yours" if isinstance(price, Price) else "unknown"
    return f"{max(0, (today - price.as_of).days)} d"


def _hardware(found: OfferEstimate) -> str:
    """`1x L4 ml.g6.2xlarge`, `2 nodes of 8x H100 ...`, `L4:1 on gcp spot`."""
    offer = found.offer
    text = offer.instance_type
    if offer.backend == "skypilot":
        place = offer.region or (found.price.provider if isinstance(found.price, Price) else None)
        text += f" on {place}" if place else ""
    elif offer.gpu is not None and offer.gpu not in offer.instance_type:
        text = f"{offer.gpus}x {offer.gpu} {text}"
    if offer.nodes > 1:
        text = f"{offer.nodes} nodes of {text}"
    return f"{text} spot" if offer.spot else f"{text} flex-start" if offer.flex else text


def _place(found: OfferEstimate) -> str:
    region = found.offer.region or (found.price.region if isinstance(found.price, Price) else None)
    where = f" in {region}" if region and found.offer.backend != "skypilot" else ""
    return f"{found.offer.backend}, {_hardware(found)}{where}"


def _count_line(preview: Preview, shown: Sequence[Line], everything: bool) -> str:
    every, some = len(preview.lines) + len(preview.by_tokens), len(shown) + len(preview.by_tokens)
    more = "" if everything or some == every else "; --all shows every one that is priced"
    return f"shown {some} of {every}{more}"


def multiplication(work: Work, found: OfferEstimate) -> Table:
    """tokens x epochs / tokens a second -> hours -> dollars, each product to be checked by hand."""
    hours, total = found.hardware.hours, found.total
    tokens = f"{work.tokens:,} x {work.epochs:.3g} epochs = {work.trained_tokens:,.0f}"
    if hours is None:
        return facts([("tokens", tokens)])
    speed = work.trained_tokens / hours.train_s
    phases = " + ".join(f"{_exact(value)} {name}" for name, value in hours.phases.items() if value >= 0.0005)
    rows: list[tuple[str, str | Text]] = [
        ("tokens", f"{tokens}, / {speed:,.0f} tokens/s = {_exact(hours.train_s / 3600)} h of training"),
        ("hours", f"{phases} = {_exact(hours.expected)} h"),
    ]
    if total is not None and total.high:
        hourly = found.hourly
        rate = f"x ${_dollars(hourly)}" if hourly is not None else "x up to the price on demand"
        known = [(item.what, item.high if item.expected is None else item.expected) for item in found.items]
        items = " + ".join(f"{_dollars(value)} {what}" for what, value in known if value >= Decimal("0.005"))
        rows.append(("dollars", f"{_exact(hours.expected)} h {rate}: {items} = ${_dollars(total.usual)}"))
    return facts(rows)


def notes(preview: Preview, everything: bool) -> Iterator[Text]:
    """What is assumed (*), what is not priced and why."""
    for text in preview.assumptions:
        yield Text(f"* {text}", style="dim")
    for text in preview.missing:
        yield Text(f"not priced: {text}", style="dim")


def _money(total: Money, to: str = " to ") -> str:
    band = f"{total.low:.2f}{to}{total.high:.2f}"
    return band if total.expected is None else f"{total.expected:.2f} ({band})"


def _dollars(value: Decimal) -> str:
    return f"{value:.2f}"


def _signed(value: Decimal) -> str:
    return f"{'+' if value >= 0 else '-'}${abs(value):.2f}"


def _hours(value: float) -> str:
    """Two places below ten hours, one below a hundred, then none."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _exact(hours: float) -> str:
    """Hours to the third place, as a product needs them to be checked."""
    return f"{hours:.3f}" if hours < 10 else f"{hours:,.1f}"
