"""Azure Machine Learning on this machine, for tests: a proxy that answers for Azure's public hosts, over TLS.

    with AzureMLEmulator(python) as azure:
        ...                                   # any program, with azure.environment
        azure.interrupt(after_line="step 3")
        azure.fault("lose", "PutJob")

What it is: one process on a free port of 127.0.0.1. A client with `environment` set sends every request for
management.azure.com, login.microsoftonline.com, the workspace's api.azureml.ms, its storage account and its key
vault here, with the names unchanged and a certificate authority of the emulator's own; any other host is refused
and noted (`strangers`). So azure-identity, azure-storage-blob and azure-ai-ml's MLClient run through it as they
are, which the tests beside this file do. The storage account is Azurite, Microsoft's own emulator of Blob Storage:
it computes signatures, reads tokens, keeps blocks and blobs, copies, lists and refuses as it does for anybody.
Jobs are processes with the variables that Azure ML documents, their `${{inputs.x}}` and `${{outputs.x}}` replaced,
cancelled and interrupted by SIGTERM; each attempt begins on an empty machine with what the account has, and its
logs are blobs that grow, as the run history names them.

What it is not: Azure. A mount is a folder that is brought at the start and sent back a few times a second and at
the end, file by file: that blobfuse fetches as a file is read, keeps what it knows for a while and writes at a
file's end is not emulated; nor are a hierarchical namespace, replication and its delays. A signature
or sign-in that `expire` takes back is refused before Azurite is asked, which knows only of times. Images are a
python of this machine; nothing is built. All machines of a job are this one. Who may do what is not read from
roles: everything is allowed but what `deny` denies. That a spot job is queued again under its name, that SIGTERM
comes with a grace period, and that a log goes on in the same file after an interruption are assumptions; the other
kinds of `interrupt` are what users report. States take moments; sizes and quotas are invented.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.emulators.azureml import azurite
from tests.emulators.azureml.names import CLIENT, GROUP, IDENTITY, SUBSCRIPTION, TENANT, VAULT, WORKSPACE
from tests.emulators.namespaces import prefix
from tests.emulators.process import EmulatorProcess

DONE = ("Completed", "Failed", "Canceled")


class AzureMLEmulator:
    """A context manager; its process ends with the block, and with the one that started it."""

    subscription, group, workspace, vault, identity = SUBSCRIPTION, GROUP, WORKSPACE, VAULT, IDENTITY

    def __init__(
        self, python: Path | str = sys.executable, *, folder: Path | None = None, **settings: Any
    ) -> None:
        """`settings`: see world.Settings (grace_s, pace_s, secrets, quotas, computes, ...)."""
        self._process = EmulatorProcess(
            "tests.emulators.azureml.server", folder, {**settings, "python": str(python)}
        )

    @staticmethod
    def unavailable() -> str | None:
        """Why it can't run here; None where it can."""
        if find_spec("azure") is None or find_spec("azure.identity") is None:
            return "the Azure ML emulator needs azure-identity (make test installs it)"
        return azurite.lacking() or prefix()[1]

    @classmethod
    def needed(cls) -> None:
        """Skip the test that calls where it can't run; where FINELAUNCH_TESTS_NEED_AZURITE is set, fail it."""
        if problem := cls.unavailable():
            (pytest.fail if os.environ.get(azurite.NEEDED) else pytest.skip)(problem)

    def __enter__(self) -> AzureMLEmulator:
        self._process.start(_clean_environment())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()

    @property
    def environment(self) -> dict[str, str]:
        """What a program must have set to find this subscription, and no other, as the developer."""
        proxy, authority = f"http://127.0.0.1:{self._process.ports[0]}", str(self._process.folder / "ca.pem")
        return {
            "HTTPS_PROXY": proxy, "https_proxy": proxy, "NO_PROXY": "", "no_proxy": "",
            "REQUESTS_CA_BUNDLE": authority, "SSL_CERT_FILE": authority,
            "AZURE_TENANT_ID": TENANT, "AZURE_CLIENT_ID": CLIENT,
            "AZURE_CLIENT_SECRET": "emulated", "AZURE_CONFIG_DIR": str(self._process.folder / "no-az"),
        }  # fmt: skip

    def blobs(self, prefix: str) -> dict[str, str]:
        """Key -> ETag of every blob of the datastore whose key begins so."""
        found: dict[str, str] = self._process.ask("blobs", prefix=prefix)
        return found

    # What goes wrong.

    def fault(
        self, kind: str, operation: str = "*", *, times: int = 1, skip: int = 0, seconds: float = 0.0
    ) -> None:
        """The next `times` calls that match `operation`, after `skip`, go wrong.

        kind: throttle | error (500) | unavailable (503) | drop (the connection ends before anything is done) |
        lose (it is done, the answer never arrives) | cut (half of the answer's body) | slow (`seconds`).
        operation: `PutJob`, `blob:PutBlob`, `history:*`.
        """
        self._process.ask("fault", kind=kind, operation=operation, times=times, skip=skip, seconds=seconds)

    def deny(self, *patterns: str) -> None:
        """Operations that nobody may do: `arm:GetWorkspace`, `blob:*`."""
        self._process.ask("deny", patterns=list(patterns))

    def expire(self) -> None:
        """The developer's sign-in, its tokens, and every signature so far are not accepted from now on."""
        self._process.ask("expire")

    def login(self) -> None:
        """It is accepted again."""
        self._process.ask("login")

    def capacity(self, *, available: bool) -> None:
        """Without capacity jobs stay in the queue."""
        self._process.ask("capacity", available=available)

    def interrupt(
        self, job: str | None = None, *, kind: str = "spot", after_line: str | None = None, count: int = 1,
        notice: bool = True,
    ) -> None:  # fmt: skip
        """End one attempt of `job` (None: of the next spot job) at once, or when `count` log lines match.

        kind `spot`: it is queued again; `fail`: the job fails with a PreemptionError; `signal`: it fails as a
        process that ended with its own status; `lost`: its cluster is gone, and it is cancelled.
        notice False: no SIGTERM.
        """
        self._process.ask("interrupt", job=job, kind=kind, after_line=after_line, count=count, notice=notice)

    def set(self, **settings: Any) -> None:
        """Change settings; jobs that start later have them."""
        self._process.ask("settings", **settings)

    def clear(self) -> None:
        """Forget faults, denials, expiry, lack of capacity, interruptions, calls and changed settings."""
        self._process.ask("clear")

    # What happened.

    def calls(self, operation: str | None = None) -> list[Mapping[str, Any]]:
        """Every request so far: service, operation, path, time, status (None: it got no answer)."""
        found: list[Mapping[str, Any]] = self._process.ask("calls")
        return [call for call in found if operation in (None, call["operation"])]

    def strangers(self) -> list[str]:
        """Hosts that a client has asked for and that are not emulated."""
        found: list[str] = self._process.ask("strangers")
        return found

    def jobs(self) -> list[str]:
        found: list[str] = self._process.ask("jobs")
        return found

    def attempts(self, job: str) -> list[dict[str, Any]]:
        """Of a job: number, why it ended (exit | spot | fail | signal | lost | cancel | timeout), codes."""
        found: list[dict[str, Any]] = self._process.ask("attempts", job=job)
        return found

    def log(self, job: str) -> list[str]:
        """Every line of every machine of `job`, machine by machine, that its log has by now."""
        found: list[str] = self._process.ask("log", job=job)
        return found

    def wait_for_line(self, job: str, pattern: str, timeout_s: float = 60) -> None:
        """Until the job has said something that matches: its program is running then."""
        until = time.monotonic() + timeout_s
        while not any(re.search(pattern, line) for line in self.log(job)):
            if time.monotonic() > until:
                raise AssertionError(f"{job} never said {pattern}: {self.log(job)}")
            time.sleep(0.05)


def _clean_environment() -> dict[str, str]:
    """This process's environment without the user's subscription and without proxies."""
    return {k: v for k, v in os.environ.items() if not k.startswith("AZURE") and "proxy" not in k.lower()}
