"""What a job does, counted: rows, tokens and passes, the same wherever it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cost.passes import Passes
from cost.recipe import Rows
from cost.shapes import ModelShape
from cost.tokens import TokenCount
from launcher.spec import JobSpec


@dataclass(frozen=True, kw_only=True)
class Work:
    """One job's work. Rows and tokens are those of one epoch; the held-out rows are never trained on."""

    job: JobSpec
    shape: ModelShape
    rows: Rows
    count: int
    """Training rows."""
    tokens: int
    """Tokens of all training rows, without padding."""
    held_out: Rows
    held_out_count: int
    error: float = 0.0
    """Share by which `tokens` may be wrong; 0 when every row was counted."""
    assumptions: tuple[str, ...] = field(default=())
    labels: int = 1
    """Labels of a classification: those that the job file lists, else the training rows' different answers."""
    passes_by_way: tuple[Passes, ...] = ()
    """What passes over the rows come to, by way and size; empty: nobody has looked."""

    @property
    def judged_elsewhere(self) -> str | None:
        """The held-out file at a URI, whose rows are judged where the job runs and not counted here."""
        found, job = self.job.data.eval, self.job
        judged = job.eval.baseline or job.eval.tuned
        return found if found and "://" in found and judged and not job.train.dry_run_steps else None

    @property
    def judged_count(self) -> int:
        """Held-out rows that are judged before and after (`eval.max_rows` at most)."""
        return min(self.held_out_count, self.job.eval.max_rows)

    @property
    def trained_tokens(self) -> float:
        """Tokens of all epochs, as far as `train.max_steps` lets them run."""
        return self.tokens * self.epochs

    @property
    def epochs(self) -> float:
        """Passes over the rows that are really made."""
        train = self.job.train
        most = train.dry_run_steps or train.max_steps
        if most is None:
            return train.epochs
        share = most * train.batch_size / self.sequences
        return share if train.dry_run_steps or share < train.epochs else train.epochs

    @property
    def sequences(self) -> float:
        """Rows that the trainer sees an epoch: packed ones are as long as data.max_length.

        Example: 1,000 rows of 100 tokens packed into 2,048: 48.8 rounded up, 49.
        """
        if not self.job.train.packing:
            return self.count
        return max(1, math.ceil(self.tokens / self.job.data.max_length))

    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, math.ceil(self.sequences * self.epochs / self.job.train.batch_size - 1e-9))

    def passes(self, micro: int, ranks: int) -> float:
        """Micro-batches that each GPU works through.

        Example: 1,000 rows x 3 epochs, 4 rows a pass on 2 GPUs: 375.
        """
        return max(1.0, self.sequences * self.epochs / (micro * ranks))


def work_of(job: JobSpec, shape: ModelShape, counted: TokenCount) -> Work:
    """The work of `job` on a model of that shape, from its counted rows."""
    held_out = counted.evaluation or counted
    said = tuple(dict.fromkeys(one.assumption for one in (counted, held_out) if one.assumption))
    return Work(
        job=job,
        shape=shape,
        rows=Rows.of(counted.lengths, counted.answers),
        count=counted.rows,
        tokens=counted.total,
        held_out=Rows.of(held_out.lengths, held_out.answers),
        held_out_count=counted.evaluation.rows if counted.evaluation else 0,
        error=counted.error,
        assumptions=said,
        labels=len(job.eval.labels) if job.eval.labels else counted.labels,
        passes_by_way=counted.passes,
    )
