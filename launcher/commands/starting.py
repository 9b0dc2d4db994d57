"""From a plan to a job that is followed; run and resume share it: preview, agreement, submission."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING

from launcher.commands import asking

if TYPE_CHECKING:
    from launcher.client import Client
    from launcher.planning import Planned


def start(client: Client, planned: Planned, *, detach: bool, yes: bool, as_json: bool) -> None:
    """Show the plan, ask before money is spent, submit and stay with the job unless `detach`.

    Raises ConfigError where the job costs money and nobody can be asked.
    """
    from launcher import screen
    from launcher.outcome import describe, stay, unfollowed

    console = screen.err()
    _show(planned, as_json)
    client.refuse_unready(planned.plan)  # before anybody is asked about money
    who = _agreed(client, planned, yes, as_json)
    try:
        record = client.submit(planned, screen.ProgressLines(console))
    except KeyboardInterrupt:
        console.print(_interrupted(client, planned.plan.token), soft_wrap=True)
        raise
    if as_json:
        said = {"event": "submitted", "id": record.id, "ref": record.ref, "signed_in": who}
        print(json.dumps(said), flush=True)
    if detach and client.needs_follower(record):
        console.print(unfollowed(record), soft_wrap=True)
    if not detach:
        stay(client, record.id, as_json)
    elif as_json:
        print(json.dumps({"event": "job", **describe(record)}, default=str), flush=True)
    else:
        screen.out().print(f"{record.id} started\n  launch watch {record.id}    follows it", soft_wrap=True)


def _interrupted(client: Client, job_id: str) -> str:
    """Whether a job runs whose sending Ctrl-C has ended: it may cost money."""
    from launcher.errors import JobNotFoundError

    try:
        record = client.known(job_id)
    except JobNotFoundError:  # nothing was recorded, so nothing was sent
        return f"\n{job_id} was not started"
    if record.over:
        return f"\n{job_id} was not started"
    known = "runs all the same" if record.ref else "may have been started"
    return f"\n{job_id} {known}\n  launch watch {job_id}    follows it\n  launch cancel {job_id}   stops it"


def _show(planned: Planned, as_json: bool) -> None:
    from launcher import costview, screen

    console = screen.err()
    if not as_json:
        console.print(screen.plan_facts(planned))
        if preview := costview.planned(planned, console.width):
            console.print(preview)
    for warning in planned.data.warnings if planned.data else ():
        console.print(f"note: {warning}", style="yellow")


def _agreed(client: Client, planned: Planned, yes: bool, as_json: bool) -> str | None:
    """Ask before money is spent; a job that is known to be free is not asked about. As whom it is sent."""
    from launcher import screen

    estimate = planned.plan.estimate
    free = estimate.high == 0
    price = screen.money({"low": estimate.low, "high": estimate.high})
    somebody = sys.stdin.isatty() and not as_json
    asking.refuse_unasked(f"this job costs money ({price})", yes or free, somebody)
    who = None if free else _signed_in(client, planned)
    if who and not as_json:
        screen.err().print(f"signed in as {who}", soft_wrap=True)
    asking.ask(f"Cost: {price}. Start?", yes or free)
    return who


def _signed_in(client: Client, planned: Planned) -> str | None:
    """A remark: what keeps it from being known is said, with its fix, by the check that comes next."""
    from launcher import screen

    screen.ProgressLines(screen.err())(f"asking {planned.plan.offer.backend} who is signed in")
    with contextlib.suppress(Exception):
        return client.signed_in(planned.plan.site)
    return None
