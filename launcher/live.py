"""Following a job: a live panel in a terminal, plain lines in a pipe."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from backends.base import JobStatus, LogLine
from launcher.events import Event
from launcher.observing import WAITING, Heard, Resubmitted, Spending, Trouble
from launcher.screen import STATE_STYLE, span

BARS = "▁▂▃▄▅▆▇█"
RECENT = 8
PLAIN_EVERY_S = 10.0
FOREIGN = (LookupError, TypeError, ValueError)
"""What an event raises that the entrypoint of another version has written, with other fields."""
PHASES = {
    "setup": "setting up", "data": "reading data and model", "baseline": "judging the base model",
    "train": "training", "evaluate": "judging the tuned model", "save": "saving",
}  # fmt: skip


@dataclass
class Watched:
    """What has been heard of a job so far."""

    job_id: str
    state: str = "STARTING"
    detail: str = ""
    """The vendor's words for how the job stands, until it speaks itself."""
    phase: str | None = None
    step: int = 0
    total: int = 0
    losses: list[float] = field(default_factory=list)
    held_out: float | None = None
    tokens_per_s: float | None = None
    peak_gib: float | None = None
    checkpoint: int | None = None
    failure: str | None = None
    trouble: Trouble | None = None
    spending: Spending | None = None
    recent_s: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def eta_s(self) -> float | None:
        """Seconds of training that are left at the recent pace; None before the first step."""
        if not self.recent_s or self.step >= self.total:
            return None
        return (self.total - self.step) * sum(self.recent_s) / len(self.recent_s)

    def hear(self, item: Heard) -> None:
        """Take in one item of Client.follow."""
        if isinstance(item, Spending):
            self.spending = item
            return
        self.trouble = item if isinstance(item, Trouble) else None
        if isinstance(item, Trouble):
            return
        if isinstance(item, Resubmitted):
            self.job_id = item.job
        elif isinstance(item, JobStatus):
            self.state, self.detail = item.state.value, item.detail if item.state in WAITING else ""
        elif isinstance(item, LogLine):
            if item.text.strip():
                self.lines.append(item.text)
        else:
            with contextlib.suppress(*FOREIGN):
                self._hear_event(item)

    def _hear_event(self, event: Event) -> None:
        fields = event.fields
        if event.name == "phase":
            self.phase, self.detail = fields["name"], ""
            self.state = "STARTING" if self.phase == "setup" else "RUNNING"
        elif event.name == "step":
            step, total, loss = int(fields["step"]), int(fields["total_steps"]), float(fields["loss"])
            self.tokens_per_s, self.peak_gib = fields["tokens_per_s"], fields["peak_gib"]
            self.recent_s.append(float(fields["step_s"]))
            self.step, self.total = step, total
            self.losses.append(loss)
        elif event.name == "eval_loss":
            self.held_out = fields["loss"]
        elif event.name in ("checkpoint", "resumed"):
            self.checkpoint = fields["step"]
        elif event.name == "failure":
            self.failure = fields.get("hint")


def sparkline(values: list[float], width: int) -> str:
    """`values` as a line of at most `width` blocks, lowest to highest of what is shown."""
    if not values or width < 1:
        return ""
    if len(values) > width:
        # Means of equal shares, so that the whole run stays in view.
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((v - low) * scale)] for v in values)


def follow(items: Iterable[Heard], job_id: str, console: Console) -> Watched:
    """Show `items` until they end; what was heard. KeyboardInterrupt passes through."""
    seen = Watched(job_id)
    if console.is_terminal:
        _follow_live(items, seen, console)
    else:
        _follow_plain(items, seen, console)
    return seen


def _follow_live(items: Iterable[Heard], seen: Watched, console: Console) -> None:
    began = time.monotonic()

    def render() -> RenderableType:
        return panel(seen, time.monotonic() - began, console.width)

    with Live(get_renderable=render, console=console, refresh_per_second=4, transient=True):
        for item in items:
            seen.hear(item)


def _follow_plain(items: Iterable[Heard], seen: Watched, console: Console) -> None:
    """A line a phase, and one for the steps of every few seconds."""
    last = 0.0
    for item in items:
        seen.hear(item)
        line = None
        if isinstance(item, LogLine):
            line = item.text
        elif isinstance(item, Trouble):
            line = in_trouble(item)
        elif isinstance(item, JobStatus):
            line = seen.detail
        elif isinstance(item, Resubmitted):
            line = submitted_anew(item)
        elif isinstance(item, Spending):
            line = spent_so_far(item, seen.job_id)
        elif isinstance(item, Event) and item.name == "step" and seen.losses:
            if time.monotonic() - last >= PLAIN_EVERY_S or seen.step in (1, seen.total):
                last = time.monotonic()
                line = _step_line(seen)
        elif isinstance(item, Event):
            line = as_words(item)
        if line:
            console.print(Text(line), soft_wrap=True)


def in_trouble(trouble: Trouble) -> str:
    """Why nothing is heard of the job, and what helps."""
    hint = f"; {trouble.hint}" if trouble.hint else ""
    return f"cannot look at the job now: {trouble.message} (it goes on; trying again{hint})"


def submitted_anew(item: Resubmitted) -> str:
    """Which job goes on, and how often that may be."""
    times = f"{item.number} of {item.most}"
    return f"{item.after} lost its spot capacity; {item.job} goes on from its checkpoints ({times})"


def spent_so_far(spending: Spending, job_id: str) -> str:
    """The warning that the budget comes to its end, and what then happens."""
    share = 100 * spending.dollars / spending.budget
    return (
        f"about ${spending.dollars:.2f} of the budget of ${spending.budget:.2f} is spent ({share:.0f} %): "
        f"at its end the job checkpoints and stops; launch cancel {job_id} does it now"
    )


def as_words(event: Event) -> str | None:
    """An event as a line for a person; None when other output says the same."""
    try:
        return _words(event)
    except FOREIGN:
        return event.name


def _words(event: Event) -> str | None:
    fields = event.fields
    if event.name == "step":
        return f"step {fields['step']}/{fields['total_steps']}  loss {fields['loss']:.3f}"
    if event.name == "phase":
        return PHASES.get(fields["name"], str(fields["name"]))
    if event.name == "data":
        cut = f", {fields['dropped']} dropped, {fields['truncated']} cut"
        some = cut if fields["dropped"] or fields["truncated"] else ""
        return f"{fields['train_rows']} training rows ({fields['train_tokens']} tokens){some}"
    if event.name == "packing":
        return f"rows packed: {fields['kind']} ({fields['why']})"
    if event.name == "eval_loss":
        return f"step {fields['step']}  held-out loss {fields['loss']:.3f}"
    if event.name == "checkpoint":
        return f"checkpoint at step {fields['step']}"
    if event.name == "resumed":
        return f"going on from the checkpoint of step {fields['step']}"
    if event.name == "micro_batch":
        instead = f"{fields['rows']} rows a forward pass instead of {fields['was']}"
        return f"out of memory at step {fields['step']}: goes on with {instead}"
    if event.name == "stopped" and fields["reason"] != "dry_run":
        return f"stopped ({fields['reason']})"
    return None


def panel(seen: Watched, elapsed_s: float, width: int) -> RenderableType:
    """The live view at this moment, `width` columns wide."""
    head = Text.assemble(
        (seen.job_id, "bold"), "  ", (seen.state, STATE_STYLE.get(seen.state, "")), "  ",
        seen.detail or PHASES.get(seen.phase or "", seen.phase or "starting"), "  ", (span(elapsed_s), "dim"),
    )  # fmt: skip
    parts: list[RenderableType] = [head]
    if seen.total:
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        left = f"{span(seen.eta_s)} left" if seen.eta_s is not None else "trained"
        bar.add_row(
            f"step {seen.step}/{seen.total}",
            ProgressBar(total=seen.total, completed=seen.step),
            f"{100 * seen.step // seen.total}%  {left}",
        )
        parts.append(bar)
        parts.append(
            Text.assemble(
                ("loss ", "dim"), f"{seen.losses[-1]:.3f} ", (sparkline(seen.losses, min(40, width - 40)), "cyan")
            )
        )
        parts.append(_speed_line(seen))
    for line in list(seen.lines)[-3:]:
        parts.append(Text(line, style="dim", overflow="ellipsis", no_wrap=True))
    if seen.trouble is not None:
        parts.append(Text(in_trouble(seen.trouble), style="yellow"))
    if seen.spending is not None:
        parts.append(Text(spent_so_far(seen.spending, seen.job_id), style="yellow"))
    parts.append(Text("Ctrl-C detaches; the job goes on", style="dim italic"))
    return Group(*parts)


def _speed_line(seen: Watched) -> Text:
    line = Text()
    line.append(f"{seen.tokens_per_s:.0f} tokens/s", style="bold")
    if seen.peak_gib is not None:
        line.append(f"   {seen.peak_gib:.1f} GiB", style="dim")
    if seen.held_out is not None:
        line.append(f"   held-out loss {seen.held_out:.3f}")
    if seen.checkpoint is not None:
        line.append(f"   checkpoint at step {seen.checkpoint}", style="dim")
    return line


def _step_line(seen: Watched) -> str:
    left = f", {span(seen.eta_s)} left" if seen.eta_s is not None else ""
    return f"step {seen.step}/{seen.total}  loss {seen.losses[-1]:.3f}  {seen.tokens_per_s:.0f} tokens/s{left}"
