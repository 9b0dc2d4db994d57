"""An emulator as a process of its own: started with its settings, asked through its control address, ended."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.emulators.namespaces import prefix

ROOT = Path(__file__).parents[2]
START_S = 60
STOP_S = 15
CALL_S = 30


class EmulatorProcess:
    """`python -m module`: settings are the first line of its stdin, its ports the first of its stdout."""

    def __init__(self, module: str, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self._module = module
        self._own = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="emulator-"))
        self._settings = {**settings, "folder": str(self.folder)}
        self._process: subprocess.Popen[str] | None = None
        self.ports: list[int] = []

    def start(self, environment: Mapping[str, str]) -> None:
        begin, problem = prefix()
        if problem is not None:
            raise RuntimeError(problem)
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "server.log"
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [*begin, sys.executable, "-m", self._module], cwd=ROOT, env=environment, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
            )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(self._settings) + "\n")
        self._process.stdin.flush()
        late = threading.Timer(START_S, self._process.kill)
        late.start()
        said = self._process.stdout.readline()
        late.cancel()
        self.ports = [int(word) for word in said.split() if word.isdigit()]
        if not self.ports:
            why = log.read_text(encoding="utf-8")[-2000:]
            self.stop()
            raise RuntimeError(f"the emulator did not start: {why}")

    def stop(self) -> None:
        """End it, with all that runs in it."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        self._process = None
        if self._own:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def ask(self, verb: str, **arguments: Any) -> Any:
        """Its World's `do_VERB`. Raises ValueError for what that does not take."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[0], timeout=CALL_S)
        try:
            connection.request("POST", f"/_emulator/{verb}", json.dumps(arguments))
            told = json.load(connection.getresponse())
        finally:
            connection.close()
        if "problem" in told:
            raise ValueError(told["problem"])
        return told["answer"]
