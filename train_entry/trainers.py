"""The trainer of a job: TRL's settings, and the trainer of each way to put rows into passes."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset as TokenDataset
from transformers import PrinterCallback, Trainer
from trl import SFTConfig, SFTTrainer

from train_entry.config import TrainJob
from train_entry.data import Example
from train_entry.divergence import NotedSteps
from train_entry.events import say
from train_entry.failure import JobError
from train_entry.loop import gathered
from train_entry.packing import Packing, as_tokens, choose
from train_entry.prefix import PackedTrainer

CPU_MICRO_BATCH, GPU_MICRO_BATCH = 8, 4
"""Rows a forward pass when the job names none."""
WAIT_S = 6 * 3600
"""How long ranks wait for the one that judges."""


def trainer_config(job: TrainJob, work: Path, device: str, world: int, most_rows: int | None = None) -> SFTConfig:
    """The TRL settings; making them also starts the process group when there are several ranks."""
    micro, accumulate = micro_batches(job, device, world, most_rows)
    on_gpu = device != "cpu"
    checkpointing = job.train.gradient_checkpointing
    bf16 = on_gpu and torch.cuda.is_bf16_supported()
    return SFTConfig(
        output_dir=str(work / "trainer"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        num_train_epochs=job.train.epochs,
        max_steps=job.train.dry_run_steps or job.train.max_steps or -1,
        learning_rate=job.learning_rate,
        lr_scheduler_type=job.train.scheduler,
        warmup_steps=job.train.warmup_ratio,  # a value below 1 is a share of all steps
        weight_decay=job.train.weight_decay,
        max_grad_norm=job.train.max_grad_norm,
        seed=job.train.seed,
        data_seed=job.train.seed,
        packing=bool(job.train.packing),
        max_length=job.data.max_length if job.train.packing else None,  # rows are bounded before
        dataset_kwargs=None if job.train.packing else {"skip_prepare_dataset": True},
        gradient_checkpointing=on_gpu if checkpointing is None else checkpointing,
        bf16=bf16,
        fp16=on_gpu and not bf16,
        use_cpu=not on_gpu,
        include_num_input_tokens_seen="non_padding",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # the callback says when
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=False,
        ddp_timeout=WAIT_S,
    )


def micro_batches(job: TrainJob, device: str, world: int, most_rows: int | None = None) -> tuple[int, int]:
    """(rows a forward pass, passes a step) so that rows x passes x ranks is exactly train.batch_size.

    `most_rows`: what the device is known to take.
    """
    wanted = job.train.micro_batch or (CPU_MICRO_BATCH if device == "cpu" else GPU_MICRO_BATCH)
    wanted = min(wanted, most_rows or wanted)
    if job.train.batch_size % world:
        raise JobError(
            "config",
            f"train.batch_size {job.train.batch_size} can't be shared out over {world} processes",
            f"use a multiple of {world}",
        )
    share = job.train.batch_size // world
    micro = max(m for m in range(1, min(wanted, share) + 1) if share % m == 0)
    return micro, share // micro


class PrefixTrainer(NotedSteps, PackedTrainer):
    """The trainer of shared prefixes."""


class CompletionTrainer(NotedSteps, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose language-model head sees only the places that predict a learnt token.

    TRL's fused head works on every token of the batch: over a third of the time when answers are short.
    """

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum of the learnt tokens' losses over their number in the whole step (all ranks, all passes)."""
        labels = inputs["labels"]
        columns = (labels[:, 1:] != -100).any(dim=0).nonzero().squeeze(1)
        dense = torch.tensor([2 * len(columns) > labels.shape[1]], device=labels.device)
        # TRL's own loss talks between the ranks: all take it or none.
        if return_outputs or bool(self.accelerator.gather(dense).any()):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rest = {k: v for k, v in inputs.items() if k != "labels"}
        logits = model(**rest, use_cache=False, logits_to_keep=columns).logits
        target = labels[:, columns + 1]
        total = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), target.flatten(), ignore_index=-100, reduction="sum"
        )
        count = (target != -100).sum() if num_items_in_batch is None else num_items_in_batch
        # The count covers every rank, and DDP averages the gradients over them.
        scale = self.accelerator.num_processes if num_items_in_batch is not None else 1
        return total * scale / count

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """The Trainer tells padding by its token, which ends rows too where a model has no other."""
        if "attention_mask" in inputs:
            super()._track_num_input_tokens(inputs)
            return
        tokens = torch.tensor(inputs["input_ids"].numel(), device=self.args.device)
        self.state.num_input_tokens_seen += int(self.accelerator.gather(tokens).sum())


def pad_left(batch: Sequence[Mapping[str, list[int]]], pad: int) -> dict[str, Any]:
    """Right-aligned rows: the answers stand in the same last columns, and positions count from the row."""
    width = max(len(row["input_ids"]) for row in batch)
    gaps = [width - len(row["input_ids"]) for row in batch]
    return {
        "input_ids": torch.tensor([[pad] * g + row["input_ids"] for g, row in zip(gaps, batch, strict=True)]),
        "labels": torch.tensor([[-100] * g + row["labels"] for g, row in zip(gaps, batch, strict=True)]),
        "attention_mask": torch.tensor([[0] * g + [1] * (width - g) for g in gaps]),
        "position_ids": torch.tensor([[0] * g + list(range(width - g)) for g in gaps]),
    }


def packing_of(
    model: Any, tokenizer: Any, config: SFTConfig, job: TrainJob, rows: Sequence[Example],
    most_rows: int | None = None,
) -> Packing:  # fmt: skip
    """How these rows are put into passes, at most `most_rows` each; the same on every rank."""
    pad = tokenizer.pad_token_id
    return choose(
        model, config, job, rows, pad, lambda own: all(gathered(own)), lambda line: say(line, sys.stderr),
        most_rows,
    )  # fmt: skip


def make_trainer(
    model: Any, tokenizer: Any, config: SFTConfig, job: TrainJob, rows: Sequence[Example],
    packing: Packing | None = None,
) -> Trainer:  # fmt: skip
    """A trainer over exactly these rows: it gets token ids, so nothing is cut or dropped on the way.

    Without `packing` it is the one that packing_of finds.
    """
    packing = packing or packing_of(model, tokenizer, config, job, rows)
    config = copy.copy(config)
    config.per_device_train_batch_size = packing.micro
    config.gradient_accumulation_steps = packing.passes
    config.padding_free = packing.kind == "flat"
    dataset = TokenDataset.from_list([as_tokens(e, job.train.loss_on) for e in rows])
    pad = tokenizer.pad_token_id
    collators = {"prefix": packing.collator(pad), "padded": lambda batch: pad_left(batch, pad)}
    kind = PrefixTrainer if packing.kind == "prefix" else CompletionTrainer
    trainer = kind(
        model=model, args=config, train_dataset=dataset, processing_class=tokenizer,
        data_collator=collators.get(packing.kind),
    )  # fmt: skip
    for parameter in trainer.model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16 and job.tuning.kind == "qlora":
            parameter.data = parameter.data.float()  # TRL makes them bfloat16, too coarse for small steps
    # TRL's printer repeats every step that the events already tell.
    trainer.remove_callback(PrinterCallback)
    if packing.kind != "sequences" and len(trainer.train_dataset) != len(rows):
        raise JobError("data", f"{len(rows) - len(trainer.train_dataset)} rows were lost on the way to training")
    return trainer
