"""Training speed and quality against other trainers on the same rows, alternating: `python -m bench.train DATA`.

DATA is a folder with PolyAI banking77's train.csv and test.csv. Each engine runs in a process of its own, so that
its peak memory is its own; the first step is not timed. A token is one of a row's, whether an engine shares it,
computes it or not; padding is none.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ENGINES = ("trl-default", "trl-best", "trainer", "ours-peft", "ours")
QUEUES = {
    "card delivery": "card_arrival card_delivery_estimate order_physical_card get_physical_card",
    "exchange rate": "exchange_rate card_payment_wrong_exchange_rate exchange_charge "
    "wrong_exchange_rate_for_cash_withdrawal",
    "lost card": "lost_or_stolen_card compromised_card lost_or_stolen_phone",
    "top up": "pending_top_up top_up_failed top_up_reverted top_up_limits topping_up_by_card",
    "transfer": "pending_transfer failed_transfer declined_transfer transfer_timing cancel_transfer",
    "cash withdrawal": "pending_cash_withdrawal declined_cash_withdrawal cash_withdrawal_not_recognised "
    "cash_withdrawal_charge",
    "identity": "verify_my_identity why_verify_identity unable_to_verify_identity verify_source_of_funds",
    "refund": "request_refund Refund_not_showing_up",
}
INSTRUCTION = f"Route the bank support ticket to one queue: {', '.join(QUEUES)}.\nTicket: "
BATCH = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--test-rows", type=int, default=96)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.engine:
        print(json.dumps(measure(asked)))
        return 0
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in asked.engines}
    for _ in range(asked.rounds):
        for name in asked.engines:
            found[name].append(_apart(asked, name))
    _table(found)
    return 0


def _apart(asked: argparse.Namespace, engine: str) -> dict[str, Any]:
    from backends.local.environment import TrainingEnvironment
    from launcher.home import cache

    python = TrainingEnvironment(cache()).make(lambda line: print(line, file=sys.stderr))
    command = [
        python, "-m", "bench.train", asked.data, "--engine", engine, "--model", asked.model, "--steps",
        str(asked.steps), "--test-rows", str(asked.test_rows), "--threads", str(asked.threads),
    ]  # fmt: skip
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "LAUNCH_CACHE_DIR": str(cache())}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({"engine": engine, **result}), file=sys.stderr, flush=True)
    return result


def _table(found: dict[str, list[dict[str, Any]]]) -> None:
    def mean(name: str, figure: str) -> float:
        return statistics.fmean(run[figure] for run in found[name])

    base = next(iter(found))
    print(f"| engine | tokens/s | x | tokens/CPU-s | x | peak GiB | last loss | macro-F1 |  (x: of {base})")
    print("|---|---|---|---|---|---|---|---|")
    for name in found:
        wall, cpu = mean(name, "tokens_per_s"), mean(name, "tokens_per_cpu_s")
        print(
            f"| {name} | {wall:.1f} | {wall / mean(base, 'tokens_per_s'):.2f} | {cpu:.1f} "
            f"| {cpu / mean(base, 'tokens_per_cpu_s'):.2f} | {mean(name, 'peak_gib'):.2f} "
            f"| {mean(name, 'loss'):.3f} | {mean(name, 'macro_f1'):.3f} |"
        )


def tickets(path: Path, a_queue: int) -> list[dict[str, str]]:
    """As many tickets of every queue, drawn by a fixed seed."""
    queue_of = {intent: queue for queue, intents in QUEUES.items() for intent in intents.split()}
    by_queue: dict[str, list[str]] = {queue: [] for queue in QUEUES}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["category"] in queue_of:
                by_queue[queue_of[row["category"]]].append(" ".join(row["text"].split()))
    draw = random.Random(0)
    chosen = [(text, queue) for queue, texts in by_queue.items() for text in draw.sample(texts, a_queue)]
    draw.shuffle(chosen)
    return [{"prompt": f"{INSTRUCTION}{text}\nQueue:", "completion": queue} for text, queue in chosen]


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """One engine in this process: speed of its steps, peak memory, last loss, macro-F1 of the result."""
    import torch

    from train_entry.config import read_job
    from train_entry.data import judged_rows, load_dataset
    from train_entry.evaluate import judge
    from train_entry.loop import peak_gib
    from train_entry.models import load_base, load_tokenizer, with_tuning
    from train_entry.trainers import trainer_config

    torch.set_num_threads(asked.threads)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder)
        for name, count in (("train", 100), ("test", max(1, asked.test_rows // len(QUEUES)))):
            lines = [json.dumps(row) for row in tickets(asked.data / f"{name}.csv", count)]
            (inputs / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        train = {"max_steps": asked.steps, "epochs": 100.0, "batch_size": BATCH, "gradient_checkpointing": False}
        described = {
            "name": "bench", "model": {"id": asked.model, "dtype": _dtype(asked.engine)}, "task": "classification",
            "data": {"train": "train.jsonl", "eval": "test.jsonl"}, "train": train, "eval": {"generation": False},
        }  # fmt: skip
        (inputs / "job.json").write_text(json.dumps(described), encoding="utf-8")
        job = read_job(inputs / "job.json")
        tokenizer = load_tokenizer(job, inputs)
        data = load_dataset(job, inputs, tokenizer)
        model = with_tuning(load_base(job, inputs, device), job)
        config = trainer_config(job, inputs / "work", device, 1)
        trainer, passes = _trainer(asked.engine, model, tokenizer, config, job, data.train, inputs)
        figures = _timed(trainer, passes, asked.steps)
        peak = peak_gib()
        scores, _ = judge(model, tokenizer, job, judged_rows(job, data), data.labels, inputs, lambda: None)
        return {**figures, "peak_gib": peak, "macro_f1": scores["macro_f1"]}


def _dtype(engine: str) -> str:
    """TRL's default loads the weights in fp32; the others take what the processor computes in."""
    return "float32" if engine == "trl-default" else "auto"


def _trainer(
    engine: str, model: Any, tokenizer: Any, config: Any, job: Any, rows: Sequence[Any], folder: Path
) -> tuple[Any, int]:
    """(trainer, passes a step)."""
    from datasets import Dataset
    from peft.tuners.lora import Linear
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
    from trl import SFTConfig, SFTTrainer

    from train_entry.adapters import CastLinear
    from train_entry.packing import as_tokens
    from train_entry.trainers import make_trainer

    if engine != "ours":
        for module in model.modules():
            if type(module) is CastLinear:
                module.__class__ = Linear
    if engine.startswith("ours"):
        trainer = make_trainer(model, tokenizer, config, job, rows)
        return trainer, trainer.args.gradient_accumulation_steps
    common = {
        "output_dir": str(folder / "peer"), "per_device_train_batch_size": BATCH, "max_steps": job.train.max_steps,
        "learning_rate": job.learning_rate, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "use_cpu": config.use_cpu, "disable_tqdm": True, "seed": job.train.seed, "lr_scheduler_type": "cosine",
        "dataloader_pin_memory": False,
    }  # fmt: skip
    dataset = Dataset.from_list([as_tokens(row, "completion") for row in rows])
    if engine == "trainer":
        collate = DataCollatorForSeq2Seq(tokenizer, padding=True)
        args = TrainingArguments(**common, bf16=config.bf16)
        return Trainer(model=model, args=args, train_dataset=dataset, data_collator=collate), 1
    best = {} if engine == "trl-default" else {
        "bf16": config.bf16, "gradient_checkpointing": False, "packing": True, "max_length": 512,
        "per_device_train_batch_size": 2,  # about as many rows a step as the others
    }  # fmt: skip
    args = SFTConfig(**{**common, **best})
    return SFTTrainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer), 1


def _timed(trainer: Any, passes: int, steps: int) -> dict[str, Any]:
    """Tokens a second and a CPU-second of all steps but the first, and the last loss."""
    from transformers import TrainerCallback

    marks: list[tuple[float, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append((time.perf_counter(), time.process_time()))

    counts: list[int] = []
    trainer.data_collator = _counted(trainer.data_collator, counts)
    trainer.add_callback(Clock())
    trainer.train()
    tokens = sum(counts[passes : passes * steps])
    wall, cpu = (end - start for start, end in zip(marks[0], marks[-1], strict=True))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"tokens_per_s": tokens / wall, "tokens_per_cpu_s": tokens / cpu, "loss": losses[-1], "tokens": tokens}


def _counted(collate: Callable[[Any], Any], counts: list[int]) -> Callable[[Any], Any]:
    def counting(rows: Any) -> Any:
        counts.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    return counting


if __name__ == "__main__":
    sys.exit(main())
