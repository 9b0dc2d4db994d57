"""SkyPilot's own environment, and what SkyPilot itself says of the requests: offline, in its own process."""

from __future__ import annotations

import ast
import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backends.base import Site
from backends.container import with_examples
from backends.skypilot import SkyPilotBackend, environment, machines, places
from backends.skypilot.environment import SkyPilotEnvironment
from launcher.errors import BackendError, BackendNotInstalledError, ConfigError
from tests.conftest import Launch
from tests.tiny_wheels import make_wheel
from tests.unit.rendering import IMAGE, job, rendered

CLOUD = {"store": "s3://team-bucket", "infra": "aws/us-east-1"}
SLURM = {"store": "/shared/finelaunch", "infra": "slurm/hpc/gpu"}
K8S = {"store": "s3://team-bucket", "infra": "k8s"}


@pytest.fixture
def backend(tmp_path: Path) -> SkyPilotBackend:
    return SkyPilotBackend(tmp_path / "home")


@pytest.fixture
def real(sky_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SkyPilotBackend:
    """The backend with SkyPilot behind it, never used before."""
    monkeypatch.setenv("LAUNCH_SKYPILOT_PYTHON", str(sky_python))
    monkeypatch.setenv("LAUNCH_CACHE_DIR", str(tmp_path / "cache"))
    return SkyPilotBackend(tmp_path / "home")


def test_a_damaged_request_is_refused_before_skypilot_is_asked(backend: SkyPilotBackend) -> None:
    request = rendered(backend, job(), CLOUD)
    for damaged in ({}, {**request, "noSuchField": 1}, {**request, "task": "x"}, {**request, "managed": "yes"}):
        with pytest.raises(ConfigError):
            backend.validate(damaged)


def test_without_its_environment_validate_names_the_command_that_builds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAUNCH_SKYPILOT_PYTHON", raising=False)
    monkeypatch.setenv("LAUNCH_CACHE_DIR", str(tmp_path))
    backend = SkyPilotBackend(tmp_path / "home")
    with pytest.raises(BackendNotInstalledError) as refusal:
        backend.validate(rendered(backend, job(), CLOUD))
    assert refusal.value.hint == "launch setup skypilot --install"
    assert "launch setup skypilot --install" in [p.fix for p in backend.check(Site(backend="skypilot"))]


def test_a_failed_build_leaves_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAUNCH_SKYPILOT_PYTHON", raising=False)
    wanted = tmp_path / "requirements.txt"
    wanted.write_text("./no-such-folder\n")
    monkeypatch.setattr(environment, "REQUIREMENTS", wanted)
    built = SkyPilotEnvironment(tmp_path / "cache")
    with pytest.raises(BackendError, match="building SkyPilot's environment failed"):
        built.make(lambda line: None)
    assert not built.ready()
    assert [p.suffix for p in (tmp_path / "cache" / "environments").iterdir()] == [".log"]


def test_an_environment_has_what_the_chosen_clouds_need_and_is_repaired_where_a_file_is_gone(
    tmp_path: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    extras = ['tinyaws==1; extra == "aws"', 'tinygcp==1; extra == "gcp"']
    provides = "".join(f"\nProvides-Extra: {name}" for name in ("aws", "gcp", "slurm"))
    make_wheel(tmp_path / "wheels", "skypilot", "0.14.1", [f"sky==1{provides}", *extras])
    for name in ("sky", "tinyaws", "tinygcp"):
        make_wheel(tmp_path / "wheels", name, "1")
    monkeypatch.delenv("LAUNCH_SKYPILOT_PYTHON", raising=False)
    env = {
        "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels"), "LAUNCH_TRAIN_PYTHON": sys.executable,
        "LAUNCH_CACHE_DIR": str(tmp_path / "cache"), "LAUNCH_CONFIG_DIR": str(tmp_path / "config"),
    }  # fmt: skip
    made = launch("setup", "skypilot", "--clouds", "aws", "--store", str(tmp_path), "--infra", "slurm/x", env=env)
    assert made.returncode == 0, made.stderr
    assert "building SkyPilot's environment for aws" in made.stderr
    assert "installing 3 packages" in made.stderr
    (folder,) = (tmp_path / "cache" / "environments").glob("skypilot-*[!.log]")

    def has(name: str) -> bool:
        return subprocess.run([folder / "bin/python", "-c", f"import {name}"], capture_output=True).returncode == 0

    assert (has("tinyaws"), has("tinygcp")) == (True, False)
    (gone,) = folder.rglob("tinyaws.py")
    gone.unlink()
    told = json.loads(launch("doctor", "--json", env=env).stdout)["problems"]
    (problem,) = (p for p in told if f"{gone} is missing" in p["what"])
    assert problem["backend"] == "skypilot"
    assert problem["fix"] == "launch doctor --fix"
    repaired = launch("doctor", "--fix", "--json", env=env)
    assert str(gone) not in repaired.stdout
    assert has("tinyaws")
    assert [p.name for p in folder.parent.iterdir() if p.is_dir()] == [folder.name]


def test_a_cloud_that_skypilot_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'mars'") as refusal:
        SkyPilotEnvironment(tmp_path, tmp_path / "home").choose(["aws", "mars"])
    assert "lambda" in (refusal.value.hint or "")


def test_the_clouds_to_choose_from_are_skypilots_extras(sky_python: Path, tmp_path: Path) -> None:
    script = (
        "from importlib.metadata import metadata\nprint(sorted(metadata('skypilot').get_all('Provides-Extra')))"
    )
    assert set(environment.CLOUDS) <= set(said_by(sky_python, tmp_path, script))


def test_an_environment_that_does_not_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_SKYPILOT_PYTHON", sys.executable)  # has no sky
    with pytest.raises(BackendError, match="No module named 'sky'"):
        SkyPilotEnvironment(tmp_path).call("validate", {"task": {}, "managed": False})


EVERYWHERE: list[dict[str, Any]] = [
    {},
    {"resources": {"gpus": 8, "nodes": 2}},
    {"resources": {"image": IMAGE}, "env": {"COLOUR": "blue"}},
    {"resources": {"fallback": ["H100"]}, "secrets": ["HF_TOKEN"]},
    {"data": {"train": "gs://data/train.jsonl"}, "model": {"id": "org/model", "cache": True}},
]
SOMEWHERE: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"resources": {"spot": True, "disk_gib": 500}, "tags": {"team": "support"}}, CLOUD),
    ({"backend_options": {"skypilot": {"managed": True, "resources": {"cpus": "16+"}}}}, CLOUD),
    ({"backend_options": {"skypilot": {"resources": {"instance_type": "p4d.24xlarge"}}}}, CLOUD),
    ({"resources": {"max_wait_hours": 1, "disk_gib": 500}, "tags": {"team": "support"}}, K8S),
    ({"resources": {"offline": True, "image": IMAGE}, "model": "/models/base"}, SLURM),
    ({"secrets": ["HF_TOKEN"]}, {**CLOUD, "secrets": "server"}),
]
REFUSED: list[tuple[dict[str, Any], dict[str, str], str]] = [
    ({"resources": {"disk_teir": "high"}}, CLOUD, r"task\.resources: .*disk_tier"),
    ({"nodes": 2}, CLOUD, r"task\.nodes: "),
    ({"config": {"aws": {"vpc_name": "v"}}}, CLOUD, r"task\.config: .*aws"),
    ({"envs": {"1BAD": "x"}}, CLOUD, r"task\.envs: "),
    ({"file_mounts": {"/data": {"source": "s3://b/folder", "mode": "MOUNT"}}}, CLOUD, r".*file_mounts\./data: "),
    ({"resources": {"ports": 8080}}, SLURM, r"task\.resources: .*Slurm"),
    ({"resources": {"labels": {"Team": "A B"}}}, {**CLOUD, "infra": "gcp"}, r"task\.resources\.labels: .*Team"),
    ({"resources": {"job_recovery": "NEVER"}}, CLOUD, r".*job_recovery"),
]


def answers(python: Path, home: Path, requests: list[Any]) -> list[list[str]]:
    """The problems of each request, from one process of the worker: starting SkyPilot takes seconds."""
    facts = SkyPilotBackend(home).facts
    lines = [json.dumps({"version": 1, "op": "validate", "argument": with_examples(r, facts)}) for r in requests]
    done = subprocess.run(
        [python, environment.WORKER], input="\n".join(lines), env={**os.environ, "HOME": str(home)},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = [json.loads(line)["result"]["problems"] for line in done.stdout.splitlines()]
    assert len(found) == len(requests)
    return [[f"{problem['field']}: {problem['message']}" for problem in problems] for problems in found]


def test_skypilot_takes_every_kind_of_request(backend: SkyPilotBackend, sky_python: Path, tmp_path: Path) -> None:
    asked = [(changes, facts) for changes in EVERYWHERE for facts in (CLOUD, SLURM, K8S, {})] + SOMEWHERE
    requests = [rendered(backend, job(**copy.deepcopy(changes)), facts) for changes, facts in asked]
    assert "p4d.24xlarge" in json.dumps(requests)  # passed on without a catalogue
    assert answers(sky_python, tmp_path, requests) == [[]] * len(asked)


def test_what_skypilot_or_its_service_refuses_is_named(
    backend: SkyPilotBackend, sky_python: Path, tmp_path: Path
) -> None:
    asked = [(job(backend_options={"skypilot": options}), facts, said) for options, facts, said in REFUSED]
    asked.append((job(resources={"nodes": 2}), {**CLOUD, "infra": "runpod"}, r"task\.resources: .*RunPod"))
    found = answers(sky_python, tmp_path, [rendered(backend, spec, facts) for spec, facts, _ in asked])
    for problems, (_, _, said) in zip(found, asked, strict=True):
        assert any(re.match(said, problem) for problem in problems), (said, problems)


def test_a_refusal_lists_every_field_and_says_what_to_do(real: SkyPilotBackend) -> None:
    options = {"skypilot": {"nodes": 2, "resources": {"disk_teir": "high"}}}
    request = rendered(real, job(backend_options=options), CLOUD)
    with pytest.raises(ConfigError, match=r"task\.resources: .*disk_tier") as refusal:
        real.validate(request)
    assert refusal.value.hint
    assert [problem.partition(":")[0] for problem in refusal.value.problems] == ["task.nodes"]


def test_validation_touches_neither_the_users_skypilot_nor_the_request(
    real: SkyPilotBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = tmp_path / "user"
    user.mkdir()
    monkeypatch.setenv("HOME", str(user))
    request = rendered(real, job(secrets=["HF_TOKEN"]), {})
    before = copy.deepcopy(request)
    real.validate(request)
    assert request == before
    assert list(user.iterdir()) == []
    assert "s3://my-bucket" in json.dumps(with_examples(request, real.facts))


def said_by(sky_python: Path, home: Path, script: str) -> Any:
    """The Python literal that `script` prints last, run beside SkyPilot."""
    env = {**os.environ, "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run(
        [sky_python, "-c", script], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    return ast.literal_eval(done.stdout.strip().splitlines()[-1])


def test_a_provider_at_skypilots_server_gives_the_job_its_secrets_by_name(
    backend: SkyPilotBackend, sky_python: Path, tmp_path: Path
) -> None:
    task = rendered(backend, job(secrets=["HF_TOKEN"]), {**SLURM, "secrets": "server"})["task"]
    script = (
        "import sky; from sky import execution; from sky.server import plugins\n"
        "class Vault(plugins.ManagedSecretsProvider):\n"
        "    async def resolve(self, refs, user_hash, workspace):\n"
        "        return plugins.ResolvedSecrets(env_vars={one.name: 'from the vault' for one in refs})\n"
        "context = plugins.ExtensionContext()\n"
        "context.register_managed_secrets_provider(Vault())\n"
        "plugins.get_extension_context = lambda: context\n"
        f"with sky.Dag() as dag: task = sky.Task.from_yaml_config({task!r})\n"
        "dag.add(task) if task not in dag.tasks else None\n"
        "execution._resolve_managed_secrets(dag)\n"
        "print({name: task.envs[name] for name in ('HF_TOKEN', 'LAUNCH_JOB_ID')})"
    )
    assert said_by(sky_python, tmp_path, script) == {"HF_TOKEN": "from the vault", "LAUNCH_JOB_ID": "triage-2"}


def test_the_infra_names_are_skypilots_own(sky_python: Path, tmp_path: Path) -> None:
    script = (
        "import re; from sky.utils import schemas; pattern = schemas._get_infra_pattern()\n"
        f"print([c for c in {places.CLOUDS!r} if not re.match(pattern, c)])"
    )
    assert said_by(sky_python, tmp_path, script) == []


def test_the_gpu_names_are_skypilots_own(sky_python: Path, tmp_path: Path) -> None:
    script = "from sky.utils.gpu_names import CANONICAL_GPU_NAMES as names; print(list(names))"
    assert {gpu.name for gpu in machines.GPUS} <= set(said_by(sky_python, tmp_path, script))


def test_what_a_cloud_has_no_place_for_is_what_skypilots_templates_lack(sky_python: Path, tmp_path: Path) -> None:
    script = (
        "import pathlib, sky\n"
        "templates = (pathlib.Path(sky.__file__).parent / 'templates').glob('*-ray.yml.j2')\n"
        "print({p.name.removesuffix('-ray.yml.j2'): p.read_text() for p in templates})"
    )
    found = said_by(sky_python, tmp_path, script)
    labelled = {name for name, text in found.items() if "labels.items()" in text or "labels: {{labels}}" in text}
    assert labelled == set(places.LABELLED) - {"k8s", "ssh"}  # both are Kubernetes to SkyPilot
    assert {name for name, text in found.items() if "disk_size" not in text} - {"local"} == (
        set(places.FIXED_DISK) - {"slurm"}
    )


def test_the_clouds_whose_machines_stay_up_are_those_that_skypilot_says(sky_python: Path, tmp_path: Path) -> None:
    script = (
        "import sky; from sky.clouds import CloudImplementationFeatures as Feature\n"
        "from sky.utils.registry import CLOUD_REGISTRY as clouds\n"
        "lacks = lambda c: Feature.AUTODOWN in getattr(c, '_CLOUD_UNSUPPORTED_FEATURES', {})\n"
        "print([name for name, cloud in clouds.items() if lacks(cloud)])"
    )
    assert set(said_by(sky_python, tmp_path, script)) == set(places.STAYS_UP)


def test_skypilot_refuses_the_names_that_are_refused_here(sky_python: Path, tmp_path: Path) -> None:
    script = (
        "import re; from sky.task import _is_valid_name as valid\n"
        "from sky.skylet.constants import CLUSTER_NAME_VALID_REGEX as cluster\n"
        "print([n for n in ('a-b', 'a--b', '3d', 'a---b') if re.fullmatch(cluster, n) and valid(n)])"
    )
    assert said_by(sky_python, tmp_path, script) == ["a-b", "a--b"]
