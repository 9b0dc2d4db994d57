"""The one exception tree: what a user is told, what to type next, and the exit code.

LaunchError(message, hint)            the only class cli.py catches; --debug shows the traceback
├─ ConfigError 2 ── UnsupportedError 2        ├─ BackendNotFoundError 2   ├─ BackendNotInstalledError 3
├─ CredentialsError 4    ├─ CapacityError 5   ├─ QuotaError 5             ├─ OverBudgetError 6
├─ BackendError 7 (vendor's request id kept, raised from exc) ── UnreachableError 7
├─ JobNotFoundError 8
└─ JobFailedError 1 (status, last log lines, where the logs, the checkpoint and the artifact are)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar


class LaunchError(Exception):
    """Something the user can act on: `message` says what and where, `hint` what to type next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(LaunchError):
    """The job file, an option or a data file is wrong. `problems` lists each one as a line."""

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None, problems: Sequence[str] = ()) -> None:
        super().__init__(message, hint)
        self.problems = tuple(problems)


class UnsupportedError(ConfigError):
    """The job asks for something that the chosen backend can't do; the field is named."""


class BackendNotFoundError(LaunchError):
    """No backend of that name."""

    exit_code = 2


class BackendNotInstalledError(LaunchError):
    """The backend's extra is not installed."""

    exit_code = 3


class CredentialsError(LaunchError):
    """The vendor refuses who we are, or nobody has logged in."""

    exit_code = 4


class CapacityError(LaunchError):
    """No machine of that kind is free now; another place or time may have one."""

    exit_code = 5


class QuotaError(LaunchError):
    """The account may not use that much; only a quota increase helps."""

    exit_code = 5


class OverBudgetError(LaunchError):
    """The estimate's high end is above the job's budget."""

    exit_code = 6


class BackendError(LaunchError):
    """Any other failure of a backend or its vendor; the vendor's exception is the cause."""

    exit_code = 7

    def __init__(self, message: str, hint: str | None = None, request_id: str | None = None) -> None:
        super().__init__(message, hint)
        self.request_id = request_id


class UnreachableError(BackendError):
    """The vendor can't be reached now, or asks to be left alone for a while; the same call may work later."""


class JobNotFoundError(LaunchError):
    """Neither the record nor the backend knows the job."""

    exit_code = 8


class JobFailedError(LaunchError):
    """The job ended FAILED or CANCELLED while somebody waited for it."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None, log_tail: Iterable[str] = ()) -> None:
        super().__init__(message, hint)
        self.log_tail = tuple(log_tail)
