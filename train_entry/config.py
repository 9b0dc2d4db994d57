"""The part of the job that the training process reads: one schema, used by the launcher too.

Standard library only. The launcher hands these dataclasses to pydantic (which reads `Doc` through its two
hooks); here `read_job` parses the same job.json with the same bounds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

SHAPE = ("model.", "method:", "tuning.")
"""Fields that say which weights learn."""
PYDANTIC = {"extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True)
class Doc:
    """One field's description and bounds."""

    text: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None

    def bounds(self) -> dict[str, float]:
        return {k: v for k in ("ge", "gt", "le") if (v := getattr(self, k)) is not None}

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        schema = handler(source)
        inner = schema["schema"] if schema["type"] == "nullable" else schema
        inner.update(self.bounds())
        return schema

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> Any:
        return {**handler(core_schema), "description": self.text}


@dataclass(frozen=True, kw_only=True)
class Model:
    """The base model."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC
    id: Annotated[
        str, Doc("Hub id, local folder, s3:// gs:// or azure URI of a Hugging Face folder, or embedded:NAME.")
    ]
    revision: Annotated[str | None, Doc("Hub commit, tag or branch; pin a commit for a repeatable job.")] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Doc("Type of the frozen weights; auto is bfloat16 where the processor or GPU computes in it."),
    ] = "auto"
    chat_template: Annotated[str | None, Doc("A Jinja file of yours that replaces the model's.")] = None
    cache: Annotated[
        bool, Doc("Keep the base model in the job's storage: an interruption then does not download it again.")
    ] = False
    trust_remote_code: Annotated[bool, Doc("Run Python that the model's repository ships.")] = False


@dataclass(frozen=True, kw_only=True)
class Data:
    """Training and evaluation rows."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC
    train: Annotated[str, Doc("JSONL, JSON, CSV or Parquet file, or its URI.")]
    eval: Annotated[
        str | None, Doc("Held-out file; without one, eval_fraction of the training rows is set aside.")
    ] = None
    eval_fraction: Annotated[float, Doc("Share set aside when there is no eval file.", gt=0, le=0.5)] = 0.1
    format: Annotated[
        Literal["auto", "instruction", "prompt_completion", "messages"],
        Doc("Row shape: instruction (+ optional input) and response; prompt and completion; or messages."),
    ] = "auto"
    columns: Annotated[
        dict[str, str],
        Doc("Standard name -> your column, for example {prompt: question, completion: answer}."),
    ] = field(default_factory=dict)
    system: Annotated[str | None, Doc("System message put before rows that have none.")] = None
    max_length: Annotated[int, Doc("Tokens a row may have, prompt and answer together.", ge=8)] = 1024
    overlong: Annotated[
        Literal["error", "drop", "truncate_prompt"],
        Doc("What to do with longer rows; an answer is never cut."),
    ] = "error"
    allow_secrets: Annotated[bool, Doc("Accept data files in which something looks like a credential.")] = False


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Which weights learn."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC
    kind: Annotated[
        Literal["lora", "qlora", "full"],
        Doc("LoRA adapters; the same on a 4-bit (NF4) base; or every weight."),
    ] = "lora"
    r: Annotated[int, Doc("Adapter rank.", ge=1, le=1024)] = 16
    alpha: Annotated[int | None, Doc("Adapter scale; default 2 r.", ge=1)] = None
    dropout: Annotated[float, Doc("Adapter dropout.", ge=0, le=0.9)] = 0.05
    targets: Annotated[
        str | tuple[str, ...], Doc("all-linear, or the names of the layers that get an adapter.")
    ] = "all-linear"
    dora: Annotated[bool, Doc("Weight-decomposed LoRA (DoRA).")] = False
    rslora: Annotated[bool, Doc("Rank-stabilised scale, alpha / sqrt(r).")] = False


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Stop when the evaluation loss no longer falls; the best checkpoint is the result."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC
    patience: Annotated[int, Doc("Evaluations without improvement before the job stops.", ge=1)] = 3
    min_delta: Annotated[float, Doc("Smallest fall of the loss that counts.", ge=0)] = 0.0


@dataclass(frozen=True, kw_only=True)
class Train:
    """Optimisation."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC
    epochs: Annotated[float, Doc("Passes over the training rows.", gt=0)] = 3.0
    max_steps: Annotated[int | None, Doc("Optimizer steps at most, whatever the epochs say.", ge=1)] = None
    learning_rate: Annotated[
        float | None, Doc("Peak rate; default 2e-4 for adapters, 2e-5 for full fine-tuning.", gt=0)
    ] = None
    scheduler: Annotated[
        Literal["cosine", "linear", "constant", "constant_with_warmup"], Doc("Learning-rate schedule.")
    ] = "cosine"
    warmup_ratio: Annotated[float, Doc("Share of the steps spent warming up.", ge=0, le=1)] = 0.03
    weight_decay: Annotated[float, Doc("AdamW weight decay.", ge=0)] = 0.0
    max_grad_norm: Annotated[float, Doc("Gradient clipping; 0 turns it off.", ge=0)] = 1.0
    batch_size: Annotated[int, Doc("Rows an optimizer step, over all processes.", ge=1)] = 16
    micro_batch: Annotated[
        int | None, Doc("Rows a forward pass on one device; default: as the device's memory suggests.", ge=1)
    ] = None
    packing: Annotated[
        bool | None,
        Doc(
            "Default: rows share a pass, and what they begin with alike, where that is faster; the steps stay the "
            "same. true: sequences of max_length filled with rows, batch_size of them a step. false: padded rows."
        ),
    ] = None
    loss_on: Annotated[Literal["completion", "all"], Doc("Learn the answers only, or every token of the row.")] = (
        "completion"
    )
    gradient_checkpointing: Annotated[
        bool | None, Doc("Recompute activations to save memory; default: on with a GPU, off on a CPU.")
    ] = None
    early_stopping: Annotated[EarlyStopping | None, Doc("Null turns it off.")] = field(
        default_factory=EarlyStopping
    )
    evals_per_epoch: Annotated[int, Doc("Evaluation-loss measurements an epoch.", ge=1)] = 2
    checkpoint_minutes: Annotated[float, Doc("Minutes between checkpoints.", gt=0)] = 10.0
    checkpoint_steps: Annotated[int | None, Doc("Also one every so many steps.", ge=1)] = None
    keep_checkpoints: Annotated[int, Doc("How many of the newest are kept.", ge=1)] = 2
    seed: Annotated[
        int, Doc("Seed of the split, the order, the adapters and the dropout.", ge=0, le=2**32 - 1)
    ] = 42
    dry_run_steps: Annotated[
        int | None, Doc("Set by --dry-run: stop after so many steps and report time and memory.", ge=1)
    ] = None


@dataclass(frozen=True, kw_only=True)
class Eval:
    """How the model is judged, before and after training, on the same held-out rows."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC
    baseline: Annotated[bool, Doc("Judge the base model first.")] = True
    tuned: Annotated[bool, Doc("Judge the tuned model.")] = True
    max_rows: Annotated[int, Doc("Held-out rows judged at most (chosen by the seed).", ge=1)] = 200
    labels: Annotated[
        tuple[str, ...] | None, Doc("Classification: the labels; default: those of the training rows.")
    ] = None
    generation: Annotated[bool, Doc("Classification: also let the model answer freely and score that.")] = True
    general: Annotated[
        bool, Doc("Also score a few general questions, to tell what the model forgets while it learns.")
    ] = True
    max_new_tokens: Annotated[int, Doc("Tokens a generated answer may have.", ge=1)] = 128
    batch_size: Annotated[int, Doc("Rows a forward pass while judging.", ge=1)] = 16
    scorer: Annotated[str | None, Doc("A Python file of yours with score(rows, answers) -> dict of numbers.")] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the job leaves."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC
    merged: Annotated[bool, Doc("Also write the base model with the adapter merged in.")] = False


Task = Literal["classification", "extraction", "generation"]
Method = Literal["sft"]


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What `python -m train_entry` reads of job.json. Paths are relative to LAUNCH_INPUT_DIR, or URIs."""

    name: str
    model: Model
    task: Task
    data: Data
    method: Method = "sft"
    tuning: Tuning = field(default_factory=Tuning)
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)
    output: Output = field(default_factory=Output)
    secrets: tuple[str, ...] = ()
    max_hours: float | None = None

    @property
    def learning_rate(self) -> float:
        """The peak rate in force (the guide's defaults, by kind of tuning)."""
        return self.train.learning_rate or (2e-5 if self.tuning.kind == "full" else 2e-4)

    @property
    def alpha(self) -> int:
        """The adapter scale in force."""
        return self.tuning.alpha or 2 * self.tuning.r

    def fingerprint_parts(self) -> dict[str, str]:
        """What must be equal for a checkpoint to belong to this job, field by field.

        What only changes how often something is saved or judged is left out.
        """
        flat = _flatten(dataclasses.asdict(self))
        free = (
            "name", "eval.", "output.", "secrets", "max_hours", "data.allow_secrets", "train.checkpoint",
            "train.keep_checkpoints", "train.dry_run_steps",
        )  # fmt: skip
        return {k: json.dumps(v) for k, v in sorted(flat.items()) if not k.startswith(free)}


class JobFileError(ValueError):
    """job.json does not fit the schema; the message names the path."""


def read_job(path: Path) -> TrainJob:
    """job.json -> TrainJob. Raises JobFileError with the path of the field that does not fit."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise JobFileError(f"{path}: not JSON: {exc}") from exc
    if not isinstance(raw, dict):
        raise JobFileError(f"{path}: expected a mapping, got {type(raw).__name__}")
    return train_part(raw)


def train_part(raw: Mapping[str, Any]) -> TrainJob:
    """What the training process reads of a whole job. Raises JobFileError."""
    known = {f.name for f in dataclasses.fields(TrainJob)}
    part = {k: v for k, v in raw.items() if k in known}
    resources = raw.get("resources") or {}
    part["max_hours"] = resources.get("max_hours")
    return typing.cast(TrainJob, _build(TrainJob, part, ""))


def changes(theirs: Mapping[str, str], ours: Mapping[str, str]) -> tuple[str, ...]:
    """The fields of two jobs' fingerprint_parts that differ, as "field: theirs -> ours"."""
    differ = sorted(k for k in {*theirs, *ours} if theirs.get(k) != ours.get(k))
    return tuple(f"{k}: {theirs.get(k, 'absent')} -> {ours.get(k, 'absent')}" for k in differ)


def misfits(changed: Sequence[str]) -> tuple[str, ...]:
    """Those of the changes under which a checkpoint's weights are not this job's: never to be gone on from."""
    return tuple(c for c in changed if c.startswith(SHAPE) and not c.startswith("tuning.dropout:"))


def fingerprint(parts: Mapping[str, str]) -> str:
    """sha256 of the parts; what stands in a checkpoint's manifest."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        path: leaf
        for key, item in value.items()
        for path, leaf in _flatten(item, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _build(kind: Any, value: Any, path: str) -> Any:
    """`value` as a `kind` (a dataclass or a field's annotation), checked."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        inner, *marks = typing.get_args(kind)
        built = _build(inner, value, path)
        for mark in marks:
            if isinstance(mark, Doc) and built is not None:
                _check_bounds(mark, built, path)
        return built
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(typing.cast(type, kind), value, path)
    if origin in (typing.Union, types.UnionType):
        return _build_union(kind, value, path)
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise JobFileError(f"{path}: {value!r} is not one of {', '.join(map(str, typing.get_args(kind)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise JobFileError(f"{path}: expected a list, got {value!r}")
        return tuple(_build(typing.get_args(kind)[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise JobFileError(f"{path}: expected a mapping, got {value!r}")
        return {str(k): _build(typing.get_args(kind)[1], v, f"{path}.{k}") for k, v in value.items()}
    return _build_scalar(kind, value, path)


def _build_dataclass(kind: type, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise JobFileError(f"{path or 'job.json'}: expected a mapping, got {value!r}")
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise JobFileError(f"{path}.{key}: unknown field" if path else f"{key}: unknown field")
    missing = [
        name
        for name, f in fields.items()
        if name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise JobFileError(f"{path or 'job.json'}: {missing[0]} is missing")
    return kind(**{k: _build(hints[k], v, f"{path}.{k}" if path else k) for k, v in value.items()})


def _build_union(kind: Any, value: Any, path: str) -> Any:
    options = typing.get_args(kind)
    if value is None and type(None) in options:
        return None
    first: JobFileError | None = None
    for option in options:
        if option is type(None):
            continue
        try:
            return _build(option, value, path)
        except JobFileError as exc:
            first = first or exc
    raise first or JobFileError(f"{path}: {value!r} does not fit")


def _build_scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise JobFileError(f"{path}: expected {kind.__name__}, got {value!r}")
    if kind is float and not math.isfinite(value):
        raise JobFileError(f"{path}: {value} is not a finite number")
    return value


def _check_bounds(mark: Doc, value: Any, path: str) -> None:
    if mark.ge is not None and value < mark.ge:
        raise JobFileError(f"{path}: {value} is below {mark.ge:g}")
    if mark.gt is not None and value <= mark.gt:
        raise JobFileError(f"{path}: {value} is not above {mark.gt:g}")
    if mark.le is not None and value > mark.le:
        raise JobFileError(f"{path}: {value} is above {mark.le:g}")
