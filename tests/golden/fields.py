"""A value for every field of the job file, and how each backend expresses it: found by rendering, not by claim."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backends import registry
from backends.base import Site
from launcher.bundle import build_bundle
from launcher.errors import LaunchError
from launcher.load import json_schema
from launcher.spec import JobSpec
from tests.golden.cases import BASE, DIGEST, FACTS, PRIVATE_NETWORK, REGIONS

FIELDS: dict[str, Any] = {
    "name": "other-name",
    "model.id": "other/model", "model.revision": "abc", "model.dtype": "float16", "model.chat_template": "t.jinja",
    "model.cache": True, "model.trust_remote_code": True,
    "task": "generation", "method": "sft",
    "data.train": "eval.jsonl", "data.eval": "train.jsonl", "data.eval_fraction": 0.2, "data.format": "messages",
    "data.columns": {"prompt": "prompt"}, "data.system": "Be brief.", "data.max_length": 512,
    "data.overlong": "drop", "data.allow_secrets": True,
    "tuning.kind": "qlora", "tuning.r": 8, "tuning.alpha": 64, "tuning.dropout": 0.1, "tuning.targets": ["q_proj"],
    "tuning.dora": True, "tuning.rslora": True,
    "train.epochs": 5.0, "train.max_steps": 7, "train.learning_rate": 1e-5, "train.scheduler": "linear",
    "train.warmup_ratio": 0.1, "train.weight_decay": 0.1, "train.max_grad_norm": 0.5, "train.batch_size": 32,
    "train.micro_batch": 2, "train.packing": True, "train.loss_on": "all", "train.gradient_checkpointing": True,
    "train.early_stopping": None, "train.early_stopping.patience": 9, "train.early_stopping.min_delta": 0.1,
    "train.evals_per_epoch": 4, "train.checkpoint_minutes": 5.0, "train.checkpoint_steps": 3,
    "train.keep_checkpoints": 4, "train.seed": 7, "train.dry_run_steps": 2,
    "eval.baseline": False, "eval.tuned": False, "eval.max_rows": 10, "eval.labels": ["yes", "no"],
    "eval.generation": False, "eval.general": False, "eval.max_new_tokens": 8, "eval.batch_size": 2,
    "eval.scorer": "scorer.py",
    "output.merged": True,
    "resources.gpu": "T4", "resources.gpus": 8, "resources.nodes": 2, "resources.spot": True,
    "resources.disk_gib": 777, "resources.max_hours": 9.0, "resources.max_wait_hours": 11.0,
    "resources.resubmits": 5, "resources.region": "REGION", "resources.fallback": ["FALLBACK"],
    "resources.image": f"registry.example.com/team/train@{DIGEST}", "resources.offline": True,
    "budget": 25, "env": {"COLOUR": "blue"}, "secrets": ["HF_TOKEN"],
    "backend_options": "OPTIONS", "site": "SITE", "tags": {"cost-centre": "nlp"},
}  # fmt: skip
"""Field -> a value that differs from BASE and from the default."""

LAUNCHER_ONLY = {
    "backend": "chooses the backend",
    "budget": "checked by the launcher before the job is sent",
    "resources.resubmits": "read by who follows the job",
    "train.dry_run_steps": "job.json",
}
"""Fields that no request needs to hold, and why."""

NOT_TRIED = {"backend"}


def schema_fields() -> set[str]:
    """Dotted paths of every leaf field of the published schema."""
    schema = json_schema()
    return set(_leaves(schema, schema, "")) - NOT_TRIED


def expression(backend: str, field: str, place: Path) -> str:
    """How `backend` expresses the field: paths in the request, "job.json", "refused: ...", or "dropped"."""
    try:
        changed = _rendered(backend, _with(backend, field), place)
    except LaunchError as exc:
        if not exc.message.startswith((field, "resources")) and field not in exc.message:
            return "dropped"
        return f"refused: {exc.message.partition(': ')[2] or exc.message}"
    plain = _rendered(backend, _before(field), place)
    paths = [path for path in _differences(plain[0], changed[0]) if "BUNDLE" not in path]
    if paths:
        return ", ".join(dict.fromkeys(paths))
    if field in LAUNCHER_ONLY:
        return LAUNCHER_ONLY[field]
    if plain[1] != changed[1]:
        return "job.json"
    if plain[2] != changed[2]:
        return "a file of the bundle"
    return "its only value" if field == "method" else "dropped"


def _before(field: str) -> dict[str, Any]:
    """BASE; an offline job has its model in the bundle."""
    raw: dict[str, Any] = json.loads(json.dumps(BASE))
    return {**raw, "model": "model"} if field == "resources.offline" else raw


def _with(backend: str, field: str) -> dict[str, Any]:
    raw = _before(field)
    value = FIELDS[field]
    if value == "OPTIONS":
        value = {backend: PRIVATE_NETWORK[backend]}
    if value == "SITE":
        name = next(iter(FACTS[backend]))
        value = {backend: {name: next(f.example for f in _facts(backend, place=Path("unused")) if f.name == name)}}
    if value == "REGION":
        value = REGIONS[backend]
    head, _, rest = field.partition(".")
    if not rest:
        raw[head] = value
        return raw
    section = raw.get(head, {})
    section = {"id": section} if head == "model" and isinstance(section, str) else dict(section)
    key, _, deep = rest.partition(".")
    section[key] = {deep: value} if deep else value
    raw[head] = section
    if field == "resources.max_wait_hours":
        section["spot"] = backend == "sagemaker"  # which limits the wait of spot jobs alone; Vertex of all others
    if field == "resources.fallback":
        section["fallback"] = [_second_type(backend, raw)]
    if field == "eval.labels":
        raw["task"] = "classification"
    return raw


def _second_type(backend: str, raw: dict[str, Any]) -> str:
    target = registry.create(backend, Path("unused"))
    wanted = JobSpec.model_validate({**raw, "resources": {"gpu": "A100"}}).resources
    offers = list(target.offers(wanted))
    return offers[-1].instance_type


def _facts(backend: str, place: Path) -> Any:
    return registry.create(backend, place).facts


def _rendered(backend: str, raw: dict[str, Any], place: Path) -> tuple[Any, Any, Any]:
    """(request with the bundle's hash blanked, job.json, hash of every other file of the bundle)."""
    _write_files(place)
    job = JobSpec.model_validate(raw)
    target = registry.create(backend, place / "home")
    bundle = build_bundle(job, place, place / "bundles")
    offer = next(iter(target.offers(job.resources)))
    facts = {**FACTS[backend], **job.site.get(backend, {})}
    request = target.render(job, offer, bundle, Site(backend=backend, facts=facts), "token-abc123", "token-abc123")
    body = next(f.source for f in bundle.files if f.path == "job.json").read_text(encoding="utf-8")
    others = {f.path: f.sha256 for f in bundle.files if f.path != "job.json"}
    return json.loads(json.dumps(request).replace(bundle.sha256, "BUNDLE")), json.loads(body), others


def _write_files(place: Path) -> None:
    for name in ("train.jsonl", "eval.jsonl"):
        (place / name).write_text(json.dumps({"prompt": name, "completion": "yes"}) + "\n")
    (place / "model").mkdir(exist_ok=True)
    (place / "model" / "config.json").write_text("{}")
    (place / "t.jinja").write_text("{{ messages }}")
    (place / "scorer.py").write_text("def score(rows, answers):\n    return {}\n")


def _leaves(schema: dict[str, Any], node: dict[str, Any], path: str) -> Iterator[str]:
    found = [_resolve(schema, n) for n in (node, *node.get("anyOf", ()), *node.get("allOf", ()))]
    objects = [n for n in found if "properties" in n]
    if not objects:
        yield path
        return
    if any(n.get("type") == "null" for n in found):
        yield path  # null is a value of its own
    for key, child in objects[0]["properties"].items():
        yield from _leaves(schema, _resolve(schema, child), f"{path}.{key}" if path else key)


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref")
    if reference is None:
        return node
    found: Any = schema
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return {**found, **{k: v for k, v in node.items() if k != "$ref"}}


def _differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Dotted paths at which two JSON values differ; list items are [], environment variables by name."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            yield from _differences(one.get(key), other.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for a, b in zip(one, other, strict=True):
            yield from _differences(a, b, f"{path}[]")
    elif one != other:
        yield path
