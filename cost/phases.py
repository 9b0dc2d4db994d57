"""How long a job takes from the first second that is billed to the last, phase by phase.

Training is computed (cost/throughput.py). What stands around it no vendor publishes: those figures are assumed,
wide, and said to be so in every preview.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cost.band import Band, Part, Refusal
from cost.calibration import Calibration
from cost.judging import held_out_loss, judging
from cost.packing import Way, Ways
from cost.passes import Kind
from cost.recipe import Recipe
from cost.throughput import micro_batch_s
from cost.work import Work

LIBRARIES = Part(value=45.0, less=0.5, more=1.0)
"""Comparing packages, importing torch, transformers, peft and trl: ten seconds warm, more from a cold disk."""
FETCH_GBS, LOAD_GBS, UPLOAD_GBS, SAVE_GBS = 0.2, 1.0, 0.1, 0.5
"""GB/s: a model from hub or bucket, from disk to GPU, a result to the bucket, a checkpoint with its hashes."""
STATE_BYTES = 12.0
"""Of a checkpoint, for each trained parameter: fp32 weights and two moments of AdamW."""
INTERRUPTIONS = Part(value=0.05, less=1.0, more=5.0)
"""How often spot capacity is taken away, times an hour: none to three in ten hours, one in twenty as expected.
AWS' advisor puts p4d at 5-10 % and p5 at 10-20 % a month, other clouds say nothing; crowded regions are worse."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a backend bills before the job's own code runs, and after it ends."""

    start: Part
    """Seconds: a machine that boots, an image that comes down, packages."""
    after_s: float = 0.0
    note: str = ""


STARTS: Mapping[str, Start] = {
    # Billed from TrainingStartTime, which is before the image is there (DescribeTrainingJob's reference,
    # https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_DescribeTrainingJob.html, 2026-11-25).
    "sagemaker": Start(start=Part(value=300, less=0.5, more=1.0), note="image, packages; waiting is not billed"),
    "vertex": Start(start=Part(value=360, less=0.5, more=1.0), note="image; waiting is not billed"),
    "azureml": Start(
        start=Part(value=480, less=0.5, more=1.0), after_s=120, note="boot and image; the node idles 2 min after",
    ),
    "skypilot": Start(
        start=Part(value=420, less=0.4, more=1.2), after_s=300, note="boot and packages; it idles 5 min after",
    ),
    "local": Start(start=Part(value=5, less=0.5, more=1.0), note="the training environment is built"),
}  # fmt: skip
ELSEWHERE = Start(start=Part(value=420, less=0.5, more=1.5), note="start-up as elsewhere")
"""A backend that a plugin brings."""


@dataclass(frozen=True, kw_only=True)
class Hours:
    """Hours of one job that each of its machines is billed for."""

    useful: Band
    """Training, judging, saving."""
    around: Band
    """Before and after: start-up, libraries, the model's way to the GPU, a machine that idles."""
    rework: Band
    """What interruptions of spot capacity cost; nothing on demand."""
    train_s: float
    """Expected seconds of optimizer steps alone."""
    way: Kind = "padded"
    """How rows share passes in the middle of the band."""
    reaches: tuple[Kind, ...] = ()
    """Other ways, to which the band reaches."""

    @property
    def low(self) -> float:
        return self.useful.low + self.around.low + self.rework.low

    @property
    def expected(self) -> float:
        return self.useful.expected + self.around.expected + self.rework.expected

    @property
    def high(self) -> float:
        return self.useful.high + self.around.high + self.rework.high

    @property
    def phases(self) -> Mapping[str, float]:
        """Phase -> expected hours."""
        return {**self.useful.parts, **self.around.parts, **self.rework.parts}


def hours_of(
    work: Work, ways: Ways, backend: str, spot: bool, calibration: Calibration | None = None
) -> Hours | Refusal:
    """The job's billed hours on each of its machines."""
    recipe = ways.padded.recipe
    others = () if calibration is not None and calibration.packed else ways.others
    training = training_in(work, ways.chosen, others, calibration)
    if isinstance(training, Refusal):
        return training
    useful = {
        "training": training,
        "judging": _all_judging(work, recipe),
        "saving": saving(work, recipe, training.value),
    }
    around = before_training(work, recipe, backend)
    again = rework(work, useful, around) if spot else {}
    if after := STARTS.get(backend, ELSEWHERE).after_s:
        around["left on"] = Part(value=after)
    return Hours(
        useful=Band.of(useful).scaled(1 / 3600),
        around=Band.of(around).scaled(1 / 3600),
        rework=Band.of(again).scaled(1 / 3600),
        train_s=training.value,
        way=ways.chosen.kind,
        reaches=tuple(one.kind for one in others),
    )


def _all_judging(work: Work, recipe: Recipe) -> Part:
    """The base model before, the held-out loss on the way, the tuned model after; a dry run has none of them."""
    if work.job.train.dry_run_steps:
        return Part(value=0.0)
    parts = {"on the way": held_out_loss(work, recipe)}
    if work.job.eval.baseline:
        parts["before"] = judging(work, recipe, False)
    if work.job.eval.tuned:
        parts["after"] = judging(work, recipe, not recipe.full)
    return together(parts)


def training_in(work: Work, way: Way, others: Sequence[Way], calibration: Calibration | None) -> Part | Refusal:
    """Seconds of all optimizer steps; the band reaches to what the other ways are expected to take.

    Example: 80-100-120 s, and 40 s or 130 s another way: 40-100-130.
    """
    parts = []
    for one in (way, *others):
        step = micro_batch_s(one.recipe)
        if isinstance(step, Refusal):
            return step
        parts.append(training_part(work, one.recipe, step, calibration))
    found, rest = parts[0], [part.value for part in parts[1:]]
    low = min([found.value * (1 - found.less), *rest])
    high = max([found.value * (1 + found.more), *rest])
    return Part(value=found.value, less=1 - low / found.value, more=high / found.value - 1)


def training_part(work: Work, recipe: Recipe, step: Band, calibration: Calibration | None) -> Part:
    """Seconds of all optimizer steps: micro-batches x seconds each, and what earlier jobs say about the model.

    Example: 750 passes of 0.4-0.5-0.6 s, tokens known to 10 %: 375, 28 % less, 32 % more.
    """
    micro = work.job.train.batch_size // (recipe.ranks * recipe.accumulation)
    seconds = work.passes(micro, recipe.ranks) * step.expected
    low, high = step.low / step.expected, step.high / step.expected
    if calibration is not None:
        factor = calibration.factor
        seconds, low, high = seconds * factor, calibration.low / factor, calibration.high / factor
    return Part(value=seconds, less=1 - low * (1 - work.error), more=high * (1 + work.error) - 1)


def before_training(work: Work, recipe: Recipe, backend: str) -> dict[str, Part]:
    """Start-up, libraries, and the model from its source to the GPU.

    Example: 8.03e9 parameters of 2 bytes at 0.2 and 1 GB/s: 96 s, 72 less to 5 times as long.
    """
    start = STARTS.get(backend, ELSEWHERE)
    size = 2.0 * work.shape.params / 1e9
    model = size / FETCH_GBS + size / LOAD_GBS
    if backend == "local":  # it is in the cache, or it comes over a line that nobody knows
        return {"start": start.start, "libraries": LIBRARIES, "model": Part(value=model, less=0.85, more=4.0)}
    return {"start": start.start, "libraries": LIBRARIES, "model": Part(value=model, less=0.7, more=3.0)}


def saving(work: Work, recipe: Recipe, train_s: float) -> Part:
    """Checkpoints on the way and the result at the end.

    Example: 42 M LoRA parameters, 25 minutes of training, one every 10: 3 x 0.50 GB / 0.5 + 0.17 GB / 0.1 = 4.7 s.
    """
    every_s = work.job.train.checkpoint_minutes * 60
    count = 1 + int(train_s // every_s)
    checkpoint = recipe.trained * STATE_BYTES / 1e9 / SAVE_GBS
    return Part(value=count * checkpoint + result_gb(work, recipe) / UPLOAD_GBS, less=0.7, more=2.0)


def result_gb(work: Work, recipe: Recipe) -> float:
    """GB that the job leaves: adapter or weights in fp32, and the merged model where it is asked for."""
    merged = 2.0 * work.shape.params if work.job.output.merged and not recipe.full else 0.0
    return (4.0 * recipe.trained + merged) / 1e9


def rework(work: Work, useful: Mapping[str, Part], around: Mapping[str, Part]) -> dict[str, Part]:
    """What interruptions cost: each time half a checkpoint's interval, and everything before training again.

    Example: 10 h of training, 10 minutes between checkpoints, 10 minutes before: 0.5 x 15 minutes = 7.5.
    """
    again = work.job.train.checkpoint_minutes * 30 + sum(part.value for part in around.values())
    busy_h = sum(part.value for part in useful.values()) / 3600
    interrupted = replace(INTERRUPTIONS, value=busy_h * INTERRUPTIONS.value * again)
    return {"spot rework": interrupted}


def together(parts: Mapping[str, Part]) -> Part:
    """Several parts as one."""
    band = Band.of(parts)
    if not band.expected:
        return Part(value=0.0)
    return Part(value=band.expected, less=1 - band.low / band.expected, more=band.high / band.expected - 1)
