"""Training speed and quality against other trainers on the same rows, alternating: `python -m bench.train DATA`.

DATA is a folder with PolyAI banking77's train.csv and test.csv. Each engine runs in a process of its own, so that
its peak memory is its own; the first step is not timed. In the last round an engine trains on to --quality-steps,
and its loss and macro-F1 are those of that. Peers and ours-peft have peft's layers and torch's dropout. A token
is one of a row's, whether an engine shares it, computes it or not; padding is none.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
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
PEERS = ("trl-best", "trainer")
ELSEWHERE = 2.2
"""Of TRL's defaults, by wall: LLaMA-Factory with neat packing, no checkpointing; the best of other trainers."""
SHAPES = {
    "1b": {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""Llama-3.2-1B's, with random weights: for speed, on a GPU."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--shape", choices=SHAPES, help="a random Llama of this shape in the model's place")
    parser.add_argument("--no-prefix", action="store_true", help="the ticket first, then the instruction")
    parser.add_argument("--steps", type=int, default=6, help="steps that are timed, and the one before")
    parser.add_argument("--quality-steps", type=int, default=40)
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
    with tempfile.TemporaryDirectory() as folder:
        asked.model = folder if asked.shape else asked.model
        for number in range(asked.rounds):
            steps = asked.steps if number < asked.rounds - 1 else max(asked.steps, asked.quality_steps)
            for name in asked.engines:
                found[name].append(_apart(asked, name, steps))
    _table(found)
    _targets(found, asked.no_prefix)
    return 0


def _apart(asked: argparse.Namespace, engine: str, steps: int) -> dict[str, Any]:
    from backends.local.environment import TrainingEnvironment
    from launcher.home import cache

    python = TrainingEnvironment(cache()).make(lambda line: print(line, file=sys.stderr))
    command = [
        python, "-m", "bench.train", asked.data, "--engine", engine, "--model", asked.model, "--steps",
        str(asked.steps), "--quality-steps", str(steps), "--test-rows", str(asked.test_rows), "--threads",
        str(asked.threads), *(["--no-prefix"] if asked.no_prefix else []),
        *(["--shape", asked.shape] if asked.shape else []),
    ]  # fmt: skip
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "LAUNCH_CACHE_DIR": str(cache())}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({"engine": engine, **result}), file=sys.stderr, flush=True)
    return result


def _mean(runs: list[dict[str, Any]], figure: str) -> float:
    return statistics.fmean(run[figure] for run in runs)


def _table(found: dict[str, list[dict[str, Any]]]) -> None:
    base = next(iter(found))
    print(f"| engine | tokens/s | x | tokens/CPU-s | x | peak GiB | last loss | macro-F1 |  (x: of {base})")
    print("|---|---|---|---|---|---|---|---|")
    for name, runs in found.items():
        wall, cpu = _mean(runs, "tokens_per_s"), _mean(runs, "tokens_per_cpu_s")
        print(
            f"| {name} | {wall:.1f} | {wall / _mean(found[base], 'tokens_per_s'):.2f} | {cpu:.1f} "
            f"| {cpu / _mean(found[base], 'tokens_per_cpu_s'):.2f} | {_mean(runs, 'peak_gib'):.2f} "
            f"| {runs[-1]['loss']:.3f} | {runs[-1]['macro_f1']:.3f} ± {_error(runs):.3f} |"
        )


def _error(runs: list[dict[str, Any]]) -> float:
    """Standard error of the quality, as of a share of the rows."""
    share, rows = runs[-1]["macro_f1"], runs[-1]["rows"]
    return math.sqrt(share * (1 - share) / rows)


def _targets(found: dict[str, list[dict[str, Any]]], no_prefix: bool) -> None:
    """What is aimed at, and whether it is met: by wall, where the engines were measured."""
    speed = {name: _mean(runs, "tokens_per_s") for name, runs in found.items()}
    best = max((speed[name] for name in PEERS if name in speed), default=0.0)
    asked: list[tuple[str, str, float, float]] = []
    if no_prefix:
        asked.append(("the best peer, no prefix", "ours", 1.0, best))
    elif base := speed.get("trl-default"):
        asked += [
            ("TRL's defaults", "ours-peft", 4.0, base),
            ("TRL's defaults", "ours", 6.0, base),
        ]
        asked.append(("the best peer, here or elsewhere", "ours", 2.5, max(best, ELSEWHERE * base)))
    for said, name, factor, of in asked:
        if name in speed and of:
            met = "met" if speed[name] >= factor * of else "not met"
            print(f"{name} at least {factor:g}x {said}: {speed[name] / of:.2f}x, {met}")
    others = {name: runs for name, runs in found.items() if not name.startswith("ours")}
    if "ours" in found and others:
        name, runs = max(others.items(), key=lambda one: float(one[1][-1]["macro_f1"]))
        gap = runs[-1]["macro_f1"] - found["ours"][-1]["macro_f1"]
        met = "met" if gap <= _error(runs) else "not met"
        print(f"macro-F1 as good as the best ({name}) within its standard error: {-gap:+.3f}, {met}")


def tickets(path: Path, a_queue: int, no_prefix: bool) -> list[dict[str, str]]:
    """As many tickets of every queue, drawn by a fixed seed; `no_prefix`: they begin with what is their own."""
    queue_of = {intent: queue for queue, intents in QUEUES.items() for intent in intents.split()}
    by_queue: dict[str, list[str]] = {queue: [] for queue in QUEUES}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["category"] in queue_of:
                by_queue[queue_of[row["category"]]].append(" ".join(row["text"].split()))
    draw = random.Random(0)
    chosen = [(text, queue) for queue, texts in by_queue.items() for text in draw.sample(texts, a_queue)]
    draw.shuffle(chosen)
    form = "{ticket}\n\n{task}the one above.\nQueue:" if no_prefix else "{task}{ticket}\nQueue:"
    return [{"prompt": form.format(task=INSTRUCTION, ticket=text), "completion": queue} for text, queue in chosen]


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
    if asked.shape and not list(Path(asked.model).iterdir()):
        _make_model(Path(asked.model), SHAPES[asked.shape])
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder)
        for name, count in (("train", 100), ("test", max(1, asked.test_rows // len(QUEUES)))):
            rows = tickets(asked.data / f"{name}.csv", count, asked.no_prefix)
            lines = [json.dumps(row) for row in rows]
            (inputs / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        train = {
            "max_steps": asked.quality_steps,
            "epochs": 100.0,
            "batch_size": BATCH,
            "gradient_checkpointing": False,
        }
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
        return {**figures, "peak_gib": peak, "macro_f1": scores["macro_f1"], "rows": len(data.held_out)}


def _make_model(folder: Path, shape: dict[str, Any]) -> None:
    """Random weights under the embedded model's tokenizer, in bfloat16."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from train_entry.embedded import embedded_folder

    tokenizer = AutoTokenizer.from_pretrained(embedded_folder("embedded:smollm2-135m"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(**shape, **ends)).to(torch.bfloat16).save_pretrained(folder)


def _dtype(engine: str) -> str:
    """TRL's default loads the weights in fp32; the others take what the processor computes in."""
    return "float32" if engine == "trl-default" else "auto"


def _trainer(
    engine: str, model: Any, tokenizer: Any, config: Any, job: Any, rows: Sequence[Any], folder: Path
) -> tuple[Any, int]:
    """(trainer, passes a step)."""
    import torch
    from datasets import Dataset
    from peft.tuners.lora import Linear
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
    from trl import SFTConfig, SFTTrainer

    from train_entry.adapters import CastLinear
    from train_entry.dropout import QuickDropout
    from train_entry.packing import as_tokens
    from train_entry.trainers import make_trainer

    if engine != "ours":
        for module in model.modules():
            if type(module) is CastLinear:
                module.__class__ = Linear
            elif type(module) is QuickDropout:
                module.__class__ = torch.nn.Dropout
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
    """Tokens a second and a CPU-second of the first `steps` but one, and the last loss of all."""
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
    wall, cpu = (end - start for start, end in zip(marks[0], marks[steps - 1], strict=True))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"tokens_per_s": tokens / wall, "tokens_per_cpu_s": tokens / cpu, "loss": losses[-1], "tokens": tokens}


def _counted(collate: Callable[[Any], Any], counts: list[int]) -> Callable[[Any], Any]:
    def counting(rows: Any) -> Any:
        counts.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    return counting


if __name__ == "__main__":
    sys.exit(main())
