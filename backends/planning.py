"""The half of a backend that renders and validates and can't submit yet says so, by name, and sends nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from backends.base import Bundle, JobRef, JobStatus, LogLine, Plan, Problem, Progress, Site
from launcher.errors import UnsupportedError


class PlansOnly:
    """Everything behind `submit`, refused. A backend drops this base when it can run jobs."""

    name: str

    def __init__(self, home: Path) -> None:
        self._home = home

    def check(self, site: Site, plan: Plan | None = None) -> list[Problem]:
        return [
            Problem(
                what="this version shows the exact request and can't submit it",
                fix=f"launch plan --backend {self.name}",
            )
        ]

    def stage(self, plan: Plan, progress: Progress) -> None:
        self._refuse()

    def submit(self, plan: Plan) -> JobRef:
        self._refuse()

    def status(self, ref: JobRef) -> JobStatus:
        self._refuse()

    def logs(self, ref: JobRef, cursor: str | None = None) -> Iterator[LogLine]:
        self._refuse()

    def cancel(self, ref: JobRef) -> None:
        self._refuse()

    def download(self, ref: JobRef, to: Path) -> None:
        self._refuse()

    def release(self, ref: JobRef) -> None:
        self._refuse()

    def find(self, site: Site, token: str, region: str | None = None) -> JobRef | None:
        return None

    def discover(self, site: Site) -> Iterable[JobRef]:
        return ()

    def recorded(self, ref: JobRef) -> Mapping[str, Any]:
        self._refuse()

    def bundle(self, ref: JobRef, to: Path | None = None) -> Bundle:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UnsupportedError(
            f"backend {self.name}: this version renders and validates the request, and can't submit it",
            f"launch plan --backend {self.name} --json prints it; launch run --backend local trains here",
        )
