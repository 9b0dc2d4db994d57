"""A vendor that costs money and is this machine: its jobs are real processes, two laptops may share its account.

RENTED_ACCOUNT: the folder where the account's jobs are. RENTED_KEY: who is signed in. In the account, a file
`down` keeps it from answering, each look at a job is a line in `asked`, and files `left-*` belong to no job.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from backends.base import Capabilities, Fact, JobRef, JobStatus, Plan, Problem, Site
from backends.local import LocalBackend
from cost.offers import Offer
from launcher.errors import CredentialsError, UnreachableError
from launcher.spec import Resources

HOME = "home-1"
"""The account's own region."""


class Rented(LocalBackend):
    name = "rented"
    capabilities: Capabilities = replace(LocalBackend.capabilities, regions=True)
    facts = (Fact(name="account", what="your account", example="a-1", pattern=r"a-\d"),)

    def __init__(self, home: Path) -> None:
        self._account = Path(os.environ["RENTED_ACCOUNT"])
        super().__init__(self._account)

    def offers(self, resources: Resources) -> Iterable[Offer]:
        yield Offer(backend=self.name, instance_type="r1.large", hourly=Decimal(2), region=resources.region)

    def check(self, site: Site, plan: Plan | None = None) -> list[Problem]:
        if "RENTED_KEY" in os.environ:
            return []
        return [Problem(what="nobody is signed in", fix="export RENTED_KEY=...", kind="credentials")]

    def signed_in(self, site: Site) -> str:
        if "RENTED_KEY" not in os.environ:
            raise CredentialsError("nobody is signed in", "export RENTED_KEY=...")
        return f"{os.environ['RENTED_KEY']} in {site.need('account')} (RENTED_KEY)"

    def find_facts(self, known: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
        return {"account": ["a-7"]}

    def advice(self, known: Mapping[str, str]) -> str:
        return "none"

    def status(self, ref: JobRef) -> JobStatus:
        with (self._account / "asked").open("a") as file:
            file.write(f"{ref.id}\n")
        self._answer()
        return super().status(ref)

    def sweep(self, site: Site, before: datetime) -> int:
        left = list(self._account.glob("left-*"))
        for one in left:
            one.unlink()
        return len(left)

    def _answer(self) -> None:
        if (self._account / "down").exists():
            raise UnreachableError("no answer from rented", "later")

    def discover(self, site: Site, region: str | None = None) -> Iterable[JobRef]:
        self._answer()
        for ref in super().discover(site):
            place = self.recorded(ref)["job"]["resources"]["region"] or HOME
            if place == (region or HOME):
                yield ref
