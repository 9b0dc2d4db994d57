"""A job's life, in a thread of its own: queue, preparation, processes, interruption, cancellation, end.

The variables are those of https://learn.microsoft.com/azure/machine-learning/how-to-train-distributed-gpu
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.emulators.azureml.account import Mount
from tests.emulators.azureml.names import ACCOUNT, DATASTORES, GROUP, IDENTITY, PATH, SUBSCRIPTION, WORKSPACE
from tests.emulators.azureml.world import World, now

TICK_S, SYNC_S = 0.05, 0.2
ARTIFACTS = DATASTORES["workspaceartifactstore"]
"""The container of the jobs' logs."""
OVER = ("Completed", "Failed", "Canceled")
PREEMPTED = "PreemptionError: Nodes of this job got pre-empted."
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
EXPRESSION = re.compile(r"\$\{\{\s*((?:inputs|outputs)\.[\w.-]+?)\s*\}\}")
DURATION = re.compile(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?")


class Life(threading.Thread):
    """Runs one job to its end; `described` is what ARM tells of it."""

    def __init__(self, world: World, name: str, properties: dict[str, Any]) -> None:
        super().__init__(daemon=True, name=name)
        self.world = world
        self.settings = world.settings
        self.properties = copy.deepcopy(properties)
        self.status = "NotStarted"
        self.began: str | None = None
        self.ended: str | None = None
        self.error: str | None = None
        self.created = now()
        self.cancelled = threading.Event()
        self.attempts: list[dict[str, Any]] = []
        self.node = world.folder / "nodes" / name
        self.mounts: dict[str, Mount] = {}
        self.logs = world.folder / "logs" / name
        self.sent: dict[str, int] = {}
        """Log -> how many bytes of it are in the account."""
        self.sending = threading.Lock()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.seconds = 0.0

    @property
    def over(self) -> bool:
        return self.status in OVER

    @property
    def spot(self) -> bool:
        compute = str(self.properties.get("computeId") or "").rpartition("/")[2]
        if compute:
            return self.settings.computes.get(compute, {}).get("vmPriority") == "LowPriority"
        return bool((self.properties.get("queueSettings") or {}).get("jobTier") == "Spot")

    def described(self) -> dict[str, Any]:
        outputs = {
            **(self.properties.get("outputs") or {}),
            "default": {
                "jobOutputType": "uri_folder", "mode": "ReadWriteMount",
                "uri": f"azureml://datastores/workspaceartifactstore/ExperimentRun/dcid.{self.name}",
            },
        }  # fmt: skip
        studio = f"https://ml.azure.com/runs/{self.name}?wsid={PATH}"
        return {
            "id": f"{PATH}/jobs/{self.name}", "name": self.name,
            "type": "Microsoft.MachineLearningServices/workspaces/jobs", "systemData": {"createdAt": self.created},
            "properties": {
                "tags": {}, "properties": {}, **self.properties, "status": self.status, "outputs": outputs,
                "services": {"Studio": {"jobServiceType": "Studio", "endpoint": studio}},
            },
        }  # fmt: skip

    def details(self) -> dict[str, Any]:
        """What the run history tells, with a signed URL a log."""
        base = f"https://{ACCOUNT}.blob.core.windows.net/{ARTIFACTS}/ExperimentRun/dcid.{self.name}/user_logs"
        with self.sending:
            names = sorted(self.sent)
        files = {f"user_logs/{name}": f"{base}/{name}?{self.world.new_signature('r')}" for name in names}
        files["system_logs/lifecycler/lifecycler.log"] = f"{base}/system.log"  # of Azure's own, not the job's
        error = {"error": {"code": "UserError", "message": self.error}} if self.error else None
        return {
            "runId": self.name, "status": self.status, "startTimeUtc": self.began,
            "endTimeUtc": self.ended if self.over else None, "error": error, "logFiles": files,
        }  # fmt: skip

    def cancel(self) -> bool:
        """Ask it to stop; False where it is over."""
        if self.over:
            return False
        self.status = "CancelRequested"
        self.cancelled.set()
        return True

    def run(self) -> None:
        try:
            status, error = self.live()
        except Exception as exc:  # noqa: BLE001 - a job must end, and its reason must say whose fault it was
            traceback.print_exc()
            status, error = "Failed", f"the emulator broke: {type(exc).__name__}: {exc}"
        finally:
            self.kill()
        self.error, self.ended = error, now()
        self.began = self.began or self.ended
        self.status = status

    def enter(self, status: str) -> None:
        if not self.cancelled.is_set():
            self.status = status
        self.cancelled.wait(self.settings.pace_s)

    def live(self) -> tuple[str, str | None]:
        """(last status, error)."""
        while True:
            self.enter("Queued")
            while self.world.no_capacity and not self.cancelled.is_set():
                time.sleep(TICK_S)
            self.enter("Preparing")
            if self.cancelled.is_set():
                return "Canceled", None
            why = self.attempt()
            if why == "spot":
                continue
            self.enter("Finalizing")
            if why == "fail":
                return "Failed", PREEMPTED
            if why == "lost" or self.is_lost_meanwhile():
                return "Canceled", PREEMPTED
            if why in ("cancel", "timeout"):
                return "Canceled", None
            codes = [process.returncode for process in self.processes]
            if any(codes):
                bad = next(code for code in codes if code)
                return "Failed", (
                    f"Execution failed. User process '/bin/bash' exited with status code {bad}. Please check log "
                    "file 'user_logs/std_log.txt' for error details."
                )
            return "Completed", None

    def is_lost_meanwhile(self) -> bool:
        """Does a cancelled job lose its cluster while it ends?"""
        plan = self.world.interruption_for(self.name, self.spot) if self.cancelled.is_set() else None
        return plan is not None and plan.kind == "lost"

    def attempt(self) -> str:
        """The processes of all machines, to their end; why they ended."""
        note: dict[str, Any] = {"number": len(self.attempts) + 1, "why": None, "codes": None}
        self.attempts.append(note)
        shutil.rmtree(self.node, ignore_errors=True)
        self.begin(self.mounted())
        self.began = self.began or now()
        self.enter("Running")
        began = time.monotonic()
        with self.syncing():
            why = self.watch(began)
            self.kill()
        self.seconds += time.monotonic() - began
        note["why"], note["codes"] = why, [process.returncode for process in self.processes]
        return why

    def mounted(self) -> dict[str, str]:
        """`inputs.NAME` and `outputs.NAME` -> path on the machine, with what is there already."""
        found, self.mounts = {}, {}
        for name, data in (self.properties.get("inputs") or {}).items():
            if data["jobInputType"] == "literal":
                found[f"inputs.{name}"] = str(data["value"])
                continue
            of_file = data["jobInputType"] == "uri_file"
            mount = Mount(self.world.account, data["uri"], self.node / "inputs" / name, of_file)
            if not mount.bring():
                raise FileNotFoundError(f"input {name}: nothing at {data['uri']}")
            found[f"inputs.{name}"] = str(mount.path)
        for name, data in (self.properties.get("outputs") or {}).items():
            uri = data.get("uri") or f"azureml://datastores/workspaceblobstore/paths/azureml/{self.name}/{name}/"
            mount = self.mounts[name] = Mount(self.world.account, uri, self.node / "outputs" / name)
            mount.bring()
            found[f"outputs.{name}"] = str(mount.path)
        return found

    @contextlib.contextmanager
    def syncing(self) -> Iterator[None]:
        """Inside what is new is sent a few times a second, and at the end."""
        over = threading.Event()

        def work() -> None:
            while not over.wait(SYNC_S):
                self.sync()

        beside = threading.Thread(target=work, daemon=True)  # what must stop at a line must not wait for this
        beside.start()
        try:
            yield
        finally:
            over.set()
            beside.join()
        self.sync()

    def sync(self) -> None:
        """Send what is new: outputs first, so that what a line of the log tells of is there when it is read."""
        sizes = {path.name: path.stat().st_size for path in self.logs.glob("*.txt")}
        for mount in self.mounts.values():
            mount.send()
        if self.settings.log_delay_s:
            later = threading.Timer(self.settings.log_delay_s, self.send_logs, (sizes,))
            later.daemon = True
            later.start()
        else:
            self.send_logs(sizes)

    def send_logs(self, sizes: dict[str, int]) -> None:
        """What is new in the logs up to these sizes."""
        with self.sending:
            for name, size in sizes.items():
                begin = self.sent.get(name, 0)
                with (self.logs / name).open("rb") as log:
                    log.seek(begin)
                    new = log.read(max(0, size - begin))
                key = f"ExperimentRun/dcid.{self.name}/user_logs/{name}"
                self.world.account.append(ARTIFACTS, key, new, first=name not in self.sent)
                self.sent[name] = begin + len(new)

    def sent_lines(self) -> list[str]:
        """Every line of every machine that the account has."""
        with self.sending:
            sent = sorted(self.sent.items())
        return [
            line
            for name, size in sent
            for line in (self.logs / name).read_bytes()[:size].decode(errors="replace").splitlines()
        ]

    def begin(self, folders: dict[str, str]) -> None:
        properties = self.properties
        command = EXPRESSION.sub(lambda match: folders[match[1]], properties["command"])
        work = self.node / "wd"
        work.mkdir(parents=True, exist_ok=True)
        self.take_code(work)
        shims = self.node / "bin"
        shims.mkdir()
        for name in ("python", "python3"):
            (shims / name).write_text(f'#!/bin/sh\nexec "{self.settings.python}" "$@"\n')
            (shims / name).chmod(0o755)
        nodes = int((properties.get("resources") or {}).get("instanceCount", 1))
        distribution = properties.get("distribution") or {}
        each = int(distribution.get("processCountPerInstance") or 1)
        port = _free_port()
        self.logs.mkdir(parents=True, exist_ok=True)
        self.processes = []
        for rank in range(nodes * each):
            env = self.environment(shims, nodes, folders)
            if distribution.get("distributionType") == "PyTorch":
                env |= {
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(rank // each),
                    "RANK": str(rank), "LOCAL_RANK": str(rank % each), "WORLD_SIZE": str(nodes * each),
                }  # fmt: skip
            name = "std_log.txt" if nodes * each == 1 else f"std_log_process_{rank}.txt"
            with (self.logs / name).open("ab") as log:
                self.processes.append(
                    subprocess.Popen(
                        [*_dying(), "/bin/bash", "-c", command], cwd=work, env=env, stdin=subprocess.DEVNULL,
                        stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                    )
                )  # fmt: skip

    def take_code(self, work: Path) -> None:
        """The code that an SDK's job brings along."""
        found = re.search(r"/codes/([^/]+)/versions/([^/]+)$", str(self.properties.get("codeId")))
        if found:
            uri = self.world.assets["codes"][f"{found[1]}:{found[2]}"]["properties"]["codeUri"]
            Mount(self.world.account, uri, work).bring()

    def environment(self, shims: Path, nodes: int, folders: dict[str, str]) -> dict[str, str]:
        """What Azure ML sets, what stands for the managed identity, and the job's own."""
        proxy = f"http://127.0.0.1:{self.world.port}"
        own_proxy = proxy.replace("//", "//job:job@")  # so that what a job asks for is not the developer's
        home = self.node / "home"
        home.mkdir(exist_ok=True)
        env = {
            "PATH": f"{shims}:{Path(self.settings.python).parent}:{SYSTEM_PATH}", "HOME": str(home),
            "LANG": "C.UTF-8", "HTTPS_PROXY": own_proxy, "SSL_CERT_FILE": str(self.world.authority),
            # All machines are this one.
            "GLOO_SOCKET_IFNAME": "lo", "TP_SOCKET_IFNAME": "lo",
            "AZUREML_RUN_ID": self.name, "MLFLOW_RUN_ID": self.name, "AZUREML_NODE_COUNT": str(nodes),
            "AZUREML_ARM_SUBSCRIPTION": SUBSCRIPTION, "AZUREML_ARM_RESOURCEGROUP": GROUP,
            "AZUREML_ARM_WORKSPACE_NAME": WORKSPACE,
            **self.world.warm_starts.environment(self.settings.warm),
        }  # fmt: skip
        for name, path in folders.items():
            kind, _, own = name.partition(".")
            env[f"AZURE_ML_{kind[:-1].upper()}_{own}"] = path
        identity = self.properties.get("identity") or {}
        if identity.get("identityType") == "Managed":
            env |= {
                "MSI_ENDPOINT": f"{proxy}/msi/token", "MSI_SECRET": "emulated",
                "DEFAULT_IDENTITY_CLIENT_ID": identity.get("clientId") or IDENTITY,
            }  # fmt: skip
        # This machine has none of the GPUs that the request pays for.
        return env | (self.properties.get("environmentVariables") or {}) | {"LAUNCH_GPUS": "0"}

    def watch(self, began: float) -> str:
        """Until every process has ended; what must stop is told, and killed after a while."""
        limit = _seconds((self.properties.get("limits") or {}).get("timeout"))
        plan, why, told_at = None, "", 0.0
        while True:
            codes = [process.poll() for process in self.processes]
            if None not in codes or (not why and any(codes)):
                return why or "exit"
            at = time.monotonic()
            if not why:
                plan = plan or self.world.interruption_for(self.name, self.spot)
                if self.cancelled.is_set() or self.world.closing.is_set():
                    why = "cancel"
                elif limit and self.seconds + at - began > limit:
                    why = "timeout"
                elif plan is not None and plan.due(at - began, self.lines()):
                    why = plan.kind
                    if not plan.notice:
                        return why
                if why:
                    told_at = at
                    self.signal(signal.SIGTERM)
            elif at - told_at > self.settings.grace_s or self.world.closing.is_set():
                return why
            time.sleep(TICK_S)

    def lines(self) -> list[str]:
        """Every line of every machine's log."""
        logs = sorted(self.logs.glob("*.txt"))
        return [line for log in logs for line in log.read_text(errors="replace").splitlines()]

    def signal(self, number: signal.Signals) -> None:
        """To the command's own process, which is the job's as it says exec."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def kill(self) -> None:
        """Whatever is left of the processes and their children."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _dying() -> list[str]:
    """What ends a process when the thread that has started it ends."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _seconds(duration: str | None) -> int:
    found = DURATION.fullmatch(duration or "")
    parts = [int(part or 0) for part in found.groups()] if found else [0, 0, 0, 0]
    return ((parts[0] * 24 + parts[1]) * 60 + parts[2]) * 60 + parts[3]
