"""The job file's schema: what a user may write, and what a plan is made from.

The sections that the training process reads are the dataclasses of train_entry.config, so both sides have
one schema; what only the launcher needs stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Self, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from train_entry.config import Data, Eval, Method, Model, Output, Task, Train, Tuning

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
ENV_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"


SHORTHAND: dict[str, str] = {"model": "id", "tuning": "kind"}
"""Section -> the key that a bare text stands for: `tuning: qlora` is `tuning: {kind: qlora}`."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Resources(_Part):
    """The hardware wanted."""

    gpu: str | None = None
    """GPU model (A100, H100, L4, ...); none: whatever the backend offers, on `local` also a bare CPU."""
    gpus: int = Field(default=1, ge=1)
    """GPUs a node."""
    nodes: int = Field(default=1, ge=1)
    """Machines."""
    spot: bool = False
    """Interruptible capacity at a discount; the job resumes from its checkpoints."""
    disk_gib: int | None = Field(default=None, ge=1)
    """Disk a node in GiB; default: from the size of model and data."""
    max_hours: float | None = Field(default=None, gt=0)
    """Hard stop: the job checkpoints and ends after so many hours."""
    max_wait_hours: float | None = Field(default=None, gt=0)
    """Hours to wait for capacity."""
    resubmits: int | None = Field(default=None, ge=0)
    """How often a spot job that the vendor ends, rather than starts again, is submitted anew; default: 3."""
    region: str | None = None
    """Where; default: the account's."""
    fallback: tuple[str, ...] = ()
    """Instance types to try next, in order, when the first has no capacity."""
    image: str | None = None
    """Container image of your own, best by digest (registry/name@sha256:...); default: the backend's."""
    offline: bool = False
    """No way out of the job's machine: packages come along in the bundle, the model from a mounted URI."""


def _from_text(section: str, kind: type) -> BeforeValidator:
    """Accept the section's shorthand for a mapping."""
    key = SHORTHAND[section]
    return BeforeValidator(
        lambda v: {key: v} if isinstance(v, str) else v, json_schema_input_type=get_type_hints(kind)[key] | kind
    )


EnvName = Annotated[str, StringConstraints(pattern=ENV_PATTERN)]


class JobSpec(_Part):
    """One fine-tuning job: what to train, on what, judged how, and where."""

    name: str = Field(pattern=NAME_PATTERN)
    """Lower-case letters, digits and dashes, at most 40."""
    model: Annotated[Model, _from_text("model", Model)]
    """Base model: an id or path, or a mapping with more."""
    task: Task
    """What the answers are: a label of a closed set, a JSON object, or free text."""
    data: Data
    """Training and evaluation rows."""
    method: Method = "sft"
    """Supervised fine-tuning."""
    tuning: Annotated[Tuning, _from_text("tuning", Tuning)] = Tuning()
    """Which weights learn: lora, qlora or full, or a mapping with more."""
    train: Train = Train()
    """Optimisation."""
    eval: Eval = Eval()
    """How the model is judged before and after."""
    resources: Resources = Resources()
    """The hardware wanted."""
    budget: Annotated[Decimal, Field(gt=0)] | None = None
    """US dollars that the job may cost at most."""
    env: Mapping[EnvName, str] = Field(default_factory=dict)
    """Environment variables for the training process; never a secret's value."""
    secrets: tuple[EnvName, ...] = ()
    """Names of secrets that the training process gets as environment variables, by reference."""
    output: Output = Output()
    """What the job leaves."""
    backend: str = "local"
    """Where it runs; --backend wins over it."""
    backend_options: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    """Backend name -> options passed to it as they are."""
    site: Mapping[str, Mapping[str, str]] = Field(default_factory=dict)
    """Backend name -> account facts (role, bucket, ...) that win over those of launch setup."""
    tags: Mapping[str, str] = Field(default_factory=dict)
    """Your own labels, put on everything that the job makes."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        """Refuse combinations that can't work: a line each, the path of the field at fault first."""
        problems = []
        if self.tuning.kind == "full" and self.tuning.dora:
            problems.append("tuning.dora needs an adapter: tuning.kind lora or qlora, not full")
        if self.tuning.kind == "qlora" and self.output.merged:
            problems.append(
                "output.merged can't merge into a 4-bit base: use tuning.kind lora, or leave output.merged out"
            )
        if self.task != "classification" and self.eval.labels:
            problems.append(f"eval.labels is for task classification, and the task is {self.task}")
        if self.train.micro_batch and self.train.micro_batch > self.train.batch_size:
            problems.append("train.micro_batch is above train.batch_size")
        problems += [f"env.{name} also stands in secrets" for name in sorted(set(self.env) & set(self.secrets))]
        if problems:
            raise ValueError("\n".join(problems))
        return self
