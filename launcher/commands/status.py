"""launch status: where a job stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from launcher.commands import options

if TYPE_CHECKING:
    from rich.text import Text


@click.command("status")
@options.job_or_newest
@options.as_json
def command(job: str | None, as_json: bool) -> None:
    """Where JOB (default: the newest) stands: its state, its phase, its last step."""
    from launcher import screen

    client = options.make_client()
    record, why = client.seen(job)
    if why:
        screen.tell_unasked(record, why)
    events = client.events(record.id)
    phase = next((e.fields.get("name") for e in reversed(events) if e.name == "phase"), None)
    step = next((e.fields for e in reversed(events) if e.name == "step"), {})
    if as_json:
        screen.print_json(
            {
                "id": record.id,
                "state": record.state,
                "reason": record.reason,
                "backend": record.backend,
                "phase": phase,
                "step": step.get("step"),
                "total_steps": step.get("total_steps"),
                "loss": step.get("loss"),
            }
        )
        return
    rows: list[tuple[str, str | Text]] = [("job", record.id), ("state", screen.state(record.state))]
    if record.reason:
        rows.append(("reason", record.reason))
    if phase and not record.over:
        rows.append(("phase", phase))
    if {"step", "total_steps", "loss"} <= step.keys():
        rows.append(("step", f"{step['step']} of {step['total_steps']}, loss {step['loss']:.3f}"))
    screen.out().print(screen.facts(rows))
