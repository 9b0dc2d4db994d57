"""worker.py as a process that is kept for many operations, under the user's own SkyPilot configuration."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from typing import IO, Any

from backends.skypilot.environment import FIX, VERSION, WORKER, SkyPilotEnvironment
from launcher.errors import (
    BackendError,
    BackendNotInstalledError,
    CapacityError,
    CredentialsError,
    LaunchError,
    UnreachableError,
)

CALL_S = 300
START_S = 300
LAUNCH_S = 1800
"""A managed job's first launch starts the machine of SkyPilot's controller."""
CAPACITY = ("ResourcesUnavailableError", "ProvisionPrechecksError")
CREDENTIALS = ("NoCloudAccessError", "CloudUserIdentityError", "InvalidCloudCredentials")
PASSING = ("ApiServerConnectionError", "RequestCancelled", "ServerTemporarilyUnavailableError")


class SkyPilotService:
    """Asks SkyPilot; one question at a time. The worker starts with the first one and ends with this process."""

    def __init__(self, environment: SkyPilotEnvironment) -> None:
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None
        self._said: IO[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, op: str, timeout_s: float = CALL_S, **argument: Any) -> Any:
        """What the worker answers. Raises LaunchError: of the kind that SkyPilot's own exception has."""
        with self._lock:
            line = json.dumps({"version": VERSION, "op": op, "argument": argument}) + "\n"
            answer = self._exchange(op, line, timeout_s)
        if "error" in answer:
            raise _as_launch_error(answer, self._environment.sky())
        return answer["result"]

    def close(self) -> None:
        """End the worker; the next question starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        if self._said is not None:
            self._said.close()
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _exchange(self, op: str, line: str, timeout_s: float) -> Mapping[str, Any]:
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(timeout_s, give_up)
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer: Mapping[str, Any] = json.loads(process.stdout.readline())
        except (OSError, ValueError) as exc:
            last = self._last_words()
            self.close()
            if late.is_set():
                raise UnreachableError(
                    f"SkyPilot did not answer within {timeout_s:g} s ({op})",
                    f"{self._environment.sky()} api status shows what it does",
                ) from exc
            raise BackendError(f"SkyPilot's worker ended: {last}", FIX) from exc
        finally:
            timer.cancel()
        return answer

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        if not self._environment.ready():
            raise BackendNotInstalledError(
                "SkyPilot is not installed: it lives in an environment of its own",
                "launch setup skypilot --install",
            )
        env = {**os.environ, "SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        env.pop("PYTHONPATH", None)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [self._environment.python(), WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._said, env=env, text=True, encoding="utf-8",
        )  # fmt: skip
        atexit.register(self.close)
        return self._process

    def _last_words(self) -> str:
        if self._said is None:
            return "it said nothing"
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return " ".join(lines[-1:]) or "it said nothing"


def _as_launch_error(answer: Mapping[str, Any], sky: str) -> LaunchError:
    """The error of our tree for SkyPilot's: its own name stays in the message."""
    kind, message = answer.get("type", ""), f"SkyPilot: {answer['error']}"
    if kind in CAPACITY:
        return CapacityError(message, "another region or GPU, or resources.fallback")
    if kind in CREDENTIALS:
        return CredentialsError(message, f"{sky} check")
    if kind in PASSING or "Connection" in kind:
        return UnreachableError(message, f"{sky} api status; the same command again")
    return BackendError(message, f"{sky} api logs shows more")
