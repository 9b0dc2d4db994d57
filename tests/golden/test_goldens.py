"""The exact request of every case on every backend, as a file that a reviewer reads the diff of.

`python -m pytest tests/golden --update-golden` writes them anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends import registry
from backends.base import Site
from launcher.bundle import build_bundle
from launcher.errors import UnsupportedError
from launcher.spec import JobSpec
from tests.golden.cases import BASE, CASES, FACTS, PRIVATE_NETWORK, REGIONS

HERE = Path(__file__).parent
BACKENDS = [name for name in registry.BUILTIN if name != "local"]


def job_of(backend: str, case: str) -> JobSpec:
    raw: dict[str, Any] = json.loads(json.dumps({**BASE, **CASES[case]}).replace("REGION", REGIONS[backend]))
    if case == "own_image_private_network":
        raw["backend_options"] = {backend: PRIVATE_NETWORK[backend]}
    return JobSpec.model_validate(raw)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the cases name."""
    place = tmp_path_factory.mktemp("golden")
    for name in ("train", "eval"):
        rows = [json.dumps({"prompt": f"{name} {n}", "completion": "yes" if n % 2 else "no"}) for n in range(4)]
        (place / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    (place / "model").mkdir()
    (place / "model" / "config.json").write_text("{}")
    return place


def rendered(backend: str, case: str, folder: Path, tmp_path: Path) -> tuple[Any, str]:
    """The request, or how it is refused; the hash of its bundle."""
    target = registry.create(backend, tmp_path / "home")
    job = job_of(backend, case)
    bundle = build_bundle(job, folder, tmp_path / "bundles")
    try:
        offer = next(iter(target.offers(job.resources)))
        token = f"{job.name}-abc123"
        request = target.render(job, offer, bundle, Site(backend=backend, facts=FACTS[backend]), token, token)
    except UnsupportedError as exc:
        return {"refused": exc.message, "hint": exc.hint}, bundle.sha256
    return request, bundle.sha256


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_request_is_the_one_that_was_reviewed(
    backend: str, case: str, folder: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    request, sha256 = rendered(backend, case, folder, tmp_path)
    # The bundle's hash changes with every line of the entrypoint; its place in the request does not.
    found = json.dumps(request, indent=1, sort_keys=True).replace(sha256, "BUNDLE") + "\n"
    path = HERE / backend / f"{case}.json"
    if pytestconfig.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(found, encoding="utf-8")
    assert path.exists(), "new case: review it with --update-golden"
    assert found == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_vendors_own_model_takes_it(
    backend: str, case: str, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The extra `dev` has every vendor's model; only SkyPilot's is elsewhere, and its absence is a skip."""
    if backend == "skypilot":
        request.getfixturevalue("sky_python")
    found, _ = rendered(backend, case, folder, tmp_path)
    if "refused" not in found:
        registry.create(backend, tmp_path / "home").validate(found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_golden_is_left_over(backend: str) -> None:
    assert {p.stem for p in (HERE / backend).glob("*.json")} == set(CASES)
