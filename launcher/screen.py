"""What a person sees: tables and lines through rich, on any width, without colour where it is not wanted."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from backends.base import BundleFile, Fact, Moved, Plan
from launcher.figures import FIGURE_NAMES

if TYPE_CHECKING:
    from rich.progress import Progress

    from launcher.planning import Planned
    from launcher.readiness import Readiness
    from launcher.store import JobRecord

STATE_STYLE = {
    "QUEUED": "yellow", "STARTING": "yellow", "SUBMITTING": "yellow", "RUNNING": "cyan", "SUCCEEDED": "green",
    "FAILED": "red", "CANCELLED": "magenta", "UNKNOWN": "yellow",
}  # fmt: skip
WIDE = 100
"""Columns from which a listing shows everything."""
LONGEST_MODEL = 24
LEAST_RESULT = 14
"""Columns of a listing: of a model's name, and of what came of a job, however long the names are."""
TOLD_EVERY_S = 10.0
FEW_FILES = 3


def out() -> Console:
    """Results: stdout."""
    return _console()


def err() -> Console:
    """Progress and remarks: stderr, so that stdout can be piped."""
    return _console(stderr=True)


def _console(stderr: bool = False) -> Console:
    """Texts stand as they are: brackets and colons in a reason or a path are no markup and no emoji."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


class ProgressLines:
    """Shows what a backend tells of its work: lines, and bytes as a bar on a terminal or now and then a line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._told = 0.0

    def __call__(self, line: str) -> None:
        if isinstance(line, Moved):
            self._show(line)
            return
        self._end()
        self._console.print(Text(line, style="dim"), soft_wrap=True)

    def _show(self, moved: Moved) -> None:
        if not self._console.is_terminal:
            if moved.done == moved.total or time.monotonic() - self._told > TOLD_EVERY_S:
                self._told = time.monotonic()
                self._console.print(Text(moved), soft_wrap=True)
            return
        if self._bar is None:
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), TransferSpeedColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task(moved.partition(":")[0], total=moved.total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=moved.done, total=moved.total)
        if moved.done == moved.total:
            self._end()
            self._console.print(Text(moved, style="dim"), soft_wrap=True)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def print_json(value: Any) -> None:
    """One JSON document on stdout, as plain text."""
    print(json_text(value, indent=2), flush=True)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON for stdout: letters as they are where it takes all of them, else escaped, so that none is lost."""
    takes_all = (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf8sig")
    return json.dumps(value, indent=indent, ensure_ascii=not takes_all, default=str)


def state(text: str) -> Text:
    return Text(text, style=STATE_STYLE.get(text, ""))


def ago(moment: datetime, now: datetime | None = None) -> str:
    """'12s ago', '5m ago', '3h ago', '2d ago'."""
    seconds = max(0, int(((now or datetime.now(UTC)) - moment).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit} ago"
    return f"{seconds}s ago"


def tell_unasked(record: JobRecord, why: str) -> None:
    """Remark that a job is shown as it was last seen."""
    when = f", as it was seen {ago(record.seen)}" if record.seen else ""
    err().print(f"{record.backend} can't be asked now{when}: {why}", style="yellow")


def span(seconds: float | None) -> str:
    """'42s', '3m 07s', '2h 05m'; '-' when unknown."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def money(estimate: Mapping[str, Any]) -> str:
    """'$0', '$3.10 to $4.80', 'at most $9.00', 'unknown'."""
    low, high = estimate.get("low"), estimate.get("high")
    if low is None and high is not None:
        return f"at most ${Decimal(high):.2f}"
    if low is None or high is None:
        return "unknown"
    if Decimal(low) == Decimal(high):
        return f"${Decimal(low):f}"
    return f"${Decimal(low):.2f} to ${Decimal(high):.2f}"


def size(count: int) -> str:
    """'17 B', '4.2 KiB', '19.0 MiB', '1.3 GiB'."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def facts(pairs: Iterable[tuple[str, str | Text]]) -> Table:
    """Names and values, one a line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, value)
    return table


def commands(*lines: tuple[str, str]) -> Table:
    """Commands to type next, each with what it does."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(style="dim", overflow="fold")
    for command, what in lines:
        table.add_row(f"  {command}", what)
    return table


def plan_facts(planned: Planned) -> Table:
    """A plan for a person."""
    return facts(plan_rows(planned))


def plan_rows(planned: Planned) -> list[tuple[str, str | Text]]:
    """What, on what, where, what it costs, what goes along."""
    plan, data = planned.plan, planned.data
    job, offer = plan.job, plan.offer
    how = f"{job.method}, {job.tuning.kind}"
    if job.tuning.kind != "full":
        how += f" r {job.tuning.r}"
    steps = "1 epoch" if job.train.epochs == 1 else f"{job.train.epochs:g} epochs"
    if job.train.max_steps:
        steps += f", at most {job.train.max_steps} steps"
    if job.train.dry_run_steps:
        steps = f"dry run: {job.train.dry_run_steps} steps"
    rows: list[tuple[str, str | Text]] = [
        ("job", plan.token),
        ("model", job.model.id),
        ("training", f"{how}; {steps}, batch {job.train.batch_size}"),
    ]
    if planned.resumes:
        changed = f" with {'; '.join(planned.changed)}" if planned.changed else ", unchanged"
        rows.append(("goes on", f"from the newest checkpoint of {planned.resumes.id}{changed}"))
        if took := planned.resumes.actual.get("seconds"):
            paid = planned.resumes.actual.get("cost")
            rows.append(("so far", span(took) if paid is None else f"{span(took)}, ${paid}"))
    if data is None:
        rows.append(("data", f"{job.data.train} (checked where it runs)"))
    else:
        held = "held out by seed" if data.eval_from == "split" else "evaluation file"
        judged = "unknown" if data.eval_rows is None else data.eval_rows
        rows.append(("data", f"{data.train_rows} training rows, {judged} rows ({held})"))
        if data.labels:
            rows.append(("labels", _some_labels(data.labels)))
    rows += [
        ("where", f"{offer.backend}: {offer.instance_type}"),
        ("cost", _cost(plan)),
        ("bundle", f"{len(plan.bundle.files)} files, {size(plan.bundle.size)}, {plan.bundle.sha256[:12]}"),
        ("contents", _contents(plan.bundle.files)),
    ]
    if job.resources.max_hours:
        rows.append(("at most", f"{job.resources.max_hours:g} hours"))
    return rows


def _contents(files: Sequence[BundleFile]) -> str:
    """What is uploaded, the largest first: a folder that holds more than a few files is one item."""
    found: dict[str, list[int]] = {}
    for file in files:
        folder, slash, _ = file.path.partition("/")
        whole = slash and sum(f.path.startswith(f"{folder}/") for f in files) > FEW_FILES
        found.setdefault(f"{folder}/" if whole else file.path, []).append(file.size)
    items = sorted(found.items(), key=lambda item: -sum(item[1]))
    return ", ".join(
        f"{name} {size(sum(sizes))}" + (f" ({len(sizes)} files)" if len(sizes) > 1 else "")
        for name, sizes in items
    )


def _cost(plan: Plan) -> str:
    """The estimate, what is expected, the hard stop, how old the price is."""
    found, offer = plan.estimate, plan.offer
    price = money({"low": found.low, "high": found.high})
    if offer.backend == "local":
        return price
    notes = list(found.assumptions)
    if found.expected is not None:
        notes.insert(0, f"likely ${found.expected:.2f}")
        if found.ceiling is not None:
            notes[1:1] = [f"at most ${found.ceiling:.2f}"]
    if source := offer.price_source:
        notes.append(f"price of {source.as_of}")
    if found.expected is None and found.missing:
        notes += [f"not known: {', '.join(found.missing)}"]
    return f"{price} ({'; '.join(notes)})" if notes else price


def difference_table(names: Sequence[str], sides: Sequence[Mapping[str, str | Text]]) -> Table:
    """Two plans beside each other; rows that are equal are dim."""
    table = Table(header_style="bold")
    table.add_column("")
    for name in names:
        table.add_column(name, overflow="fold", ratio=1)
    for row in dict.fromkeys(key for side in sides for key in side):
        cells = [side.get(row, "-") for side in sides]
        table.add_row(row, *cells, style="dim" if cells[0] == cells[1] else "")
    return table


def jobs_table(
    records: Sequence[JobRecord], width: int, silent: Collection[str] = (), me: str | None = None
) -> Table:
    """One line a job; without the model where `width` has no room for it, without owners where all are `me`.

    A state that may have changed, since its backend is `silent`, stands there with its age.
    """
    wide, several = width >= WIDE, any(record.owner not in (None, me) for record in records)
    states = [_state_seen(record, silent) for record in records]
    owners = [record.owner or "unknown" for record in records] if several else []
    columns: dict[str, Sequence[str | Text]] = {
        "JOB": [record.id for record in records],
        "STATE": states,
        "BACKEND": [record.backend for record in records],
        **({"MODEL": [_cut(record.spec["model"]["id"], LONGEST_MODEL) for record in records]} if wide else {}),
        **({"OWNER": owners} if several else {}),
        "CREATED": [ago(record.created) for record in records],
    }
    taken = sum(max(len(cell) for cell in (name, *cells)) + 2 for name, cells in columns.items())
    columns["RESULT"] = [_headline(record, max(width - taken, LEAST_RESULT)) for record in records]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, no_wrap=name != "JOB", overflow="fold")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def files_table(files: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("FILE", overflow="fold")
    table.add_column("SIZE", justify="right", no_wrap=True)
    table.add_column("SHA256", no_wrap=True, style="dim")
    for file in files:
        table.add_row(file["path"], size(file["size"]), file["sha256"][:12])
    return table


def facts_table(found: Sequence[Fact]) -> Table:
    """A backend's account facts as options."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("OPTION", no_wrap=True)
    table.add_column("WHAT", overflow="fold")
    table.add_column("FOR EXAMPLE", overflow="fold", style="dim")
    for fact in found:
        note = "" if fact.required else " (optional)"
        table.add_row(f"--{fact.name.replace('_', '-')}", f"{fact.what}{note}", fact.example)
    return table


def backends_table(found: Sequence[Readiness]) -> Table:
    """One backend a row: whether it is ready, as whom it speaks, and what it lacks, each with its fix."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("BACKEND", no_wrap=True)
    table.add_column("READY", no_wrap=True)
    table.add_column("WHAT", overflow="fold")
    for one in found:
        lines = Text(one.summary)
        if one.signed_in:
            lines.append(f"\nsigned in as {one.signed_in}", style="green")
        if not one.asked and one.ready:
            lines.append(f"\nlaunch backends {one.name} asks who is signed in and what is missing", style="dim")
        for problem in one.problems:
            lines.append(f"\n{problem.what}", style="red" if problem.fatal else "yellow")
            lines.append(f"\n  -> {problem.fix}")
        table.add_row(one.name, _ready(one), lines)
    return table


def _ready(one: Readiness) -> Text:
    if not one.ready:
        return Text("no", style="red")
    return Text("yes", style="green") if one.asked else Text("set up", style="yellow")


def _state_seen(record: JobRecord, silent: Collection[str]) -> Text:
    shown = state(record.state)
    if record.backend in silent and not record.over and record.seen:
        shown.append(f" {ago(record.seen)}", style="dim")
    return shown


def _some_labels(labels: Mapping[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in list(labels.items())[:6]]
    return ", ".join(shown) + (f", and {len(labels) - 6} more" if len(labels) > 6 else "")


def _headline(record: JobRecord, most: int) -> Text:
    """'macro-F1 0.12 -> 0.71' or 'macro-F1 0.71' from the first figure that there is; why a job failed."""
    before, after = record.evaluation.get("baseline") or {}, record.evaluation.get("tuned") or {}
    for figure in ("macro_f1", "field_f1", "rouge_l"):
        if figure in after:
            first = f"{before[figure]:.2f} -> " if figure in before else ""
            both = f"{FIGURE_NAMES[figure]} {first}{after[figure]:.2f}"
            return Text(both if len(both) <= most else f"{FIGURE_NAMES[figure]} {after[figure]:.2f}")
    why = record.reason if record.state == "FAILED" and record.reason else ""
    return Text(_cut(" ".join(why.split()), most), style="dim")
