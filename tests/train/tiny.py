"""A tiny random Llama with a tokenizer of its own, jobs over it, and the real entrypoint round them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 240
"""How long anything may take on a busy machine; whatever takes longer hangs."""
END = "<|im_end|>"
LABELS = ("billing", "card_lost", "refund", "transfer")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (
    "my",
    "the",
    "card",
    "was",
    "lost",
    "please",
    "help",
    "account",
    "twice",
    "charged",
    "money",
    "back",
    "now",
)


def make_model(folder: Path, pad: bool = True) -> Path:
    """A 2-layer Llama (hidden 64, random, float32) with a byte-level BPE tokenizer; `pad`: has a pad token."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", END, "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator([" ".join(WORDS), *LABELS, "system user assistant"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token="<|pad|>" if pad else None, chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows whose answer is a word of the prompt, so that they can be learnt; prompts of different lengths."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        label = LABELS[number % len(LABELS)]
        words = [draw.choice(WORDS) for _ in range(draw.randint(1, 9))]
        made.append({"instruction": f"{' '.join(words)} {label} {number}", "response": label})
    return made


def write_rows(path: Path, data: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    return path


def job_dict(folder: str | Path, /, **sections: Any) -> dict[str, Any]:
    """job.json: quick defaults, each section merged over them."""
    job: dict[str, Any] = {
        "name": "tiny",
        "model": {"id": str(folder), "dtype": "float32"},
        "task": "classification",
        "data": {"train": "data/train.jsonl", "eval": "data/eval.jsonl", "max_length": 128},
        "train": {
            "epochs": 1.0, "max_steps": 6, "batch_size": 4, "learning_rate": 5e-3, "evals_per_epoch": 1,
            "early_stopping": None,
        },
        "eval": {"baseline": False, "generation": False, "batch_size": 4},
    }  # fmt: skip
    for name, value in sections.items():
        job[name] = {**job[name], **value} if isinstance(value, dict) and name in job else value
    return job


WARM: dict[str, str] = {}
"""What jobs have set that start warm (tests/warm_starts.py)."""
COLD = {"FINELAUNCH_TESTS_WARM": ""}
"""For those whose process must be the very one that its parent has started."""
MISHAPS = ROOT / "tests/train/mishaps"
STARTED: list[subprocess.Popen[str]] = []


def with_mishap(**mishap: Any) -> dict[str, str]:
    """What makes ranks meet it: see mishaps/sitecustomize.py."""
    return {
        "MISHAP": json.dumps(mishap),
        "PYTHONPATH": os.pathsep.join((str(MISHAPS), str(ROOT))),
    }


def end_all() -> None:
    """Kill what a failed test has left running."""
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # ranks of torchrun notice, and end
            process.wait()


class Job:
    """One job's folders, and `python -m train_entry` on them."""

    def __init__(
        self, root: Path, job: Mapping[str, Any], train: list[dict[str, Any]], held_out: list[Any]
    ) -> None:
        self.root = root
        self.inputs, self.outputs, self.checkpoints = root / "input", root / "output", root / "checkpoints"
        self._starts = 0
        write_rows(self.inputs / "data/train.jsonl", train)
        write_rows(self.inputs / "data/eval.jsonl", held_out)
        self.write(job)

    def write(self, job: Mapping[str, Any]) -> None:
        (self.inputs / "job.json").write_text(json.dumps(job), encoding="utf-8")

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("LAUNCH_")}
        return {
            **kept,
            "PYTHONPATH": str(ROOT),
            "LAUNCH_INPUT_DIR": str(self.inputs),
            "LAUNCH_OUTPUT_DIR": str(self.outputs),
            "LAUNCH_CHECKPOINT_DIR": str(self.checkpoints),
            "LAUNCH_CACHE_DIR": str(self.root / "cache"),
            "LAUNCH_JOB_ID": "tiny-0001",
            "LAUNCH_INSTALL": "never",
            "LAUNCH_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            **WARM,
            **more,
        }

    def start(self, module: str = "train_entry", **more: str) -> subprocess.Popen[str]:
        """A session of its own, as a container would be; stdout and stderr in one pipe."""
        self.outputs.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", module], env=self.environment(**more), cwd=self.root, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        STARTED.append(process)
        return process

    def run(self, module: str = "train_entry", **more: str) -> tuple[int, str]:
        """(exit status, log) of a start that is left alone."""
        process = self.start(module, **more)
        log, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, log

    def start_rank(self, **more: str) -> subprocess.Popen[str]:
        """The training process alone, without the entrypoint."""
        self._starts += 1
        return self.start("train_entry.train", LAUNCH_RUN=f"run{self._starts}", **more)

    def end_rank(self, process: subprocess.Popen[str]) -> int:
        """Its exit status; what it has said comes to those before in log.txt."""
        said, _ = process.communicate(timeout=PATIENCE_S)
        with (self.root / "log.txt").open("a", encoding="utf-8") as log:
            log.write(said)
        return process.returncode

    def run_rank(self, **more: str) -> tuple[int, str]:
        """(exit status, log of all starts) of a training process that is left alone."""
        code = self.end_rank(self.start_rank(**more))
        return code, (self.root / "log.txt").read_text(encoding="utf-8")

    def events(self) -> list[dict[str, Any]]:
        path = self.outputs / "events.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.endswith(b"}")]

    def named(self, event: str, run: str | None = None) -> list[dict[str, Any]]:
        return [e for e in self.events() if e["event"] == event and run in (None, e["run"])]

    def wait_for(self, seen: Callable[[list[dict[str, Any]]], bool], seconds: float = PATIENCE_S) -> None:
        """Until the events satisfy `seen`."""
        end = time.monotonic() + seconds
        while not seen(self.events()):
            assert time.monotonic() < end, f"waited in vain; events: {[e['event'] for e in self.events()]}"
            time.sleep(0.02)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda events: any(e["event"] == "step" and e["step"] >= step for e in events))

    def failure(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.outputs / "failure.json").read_text(encoding="utf-8"))
        return found

    def state(self) -> str:
        return str(json.loads((self.outputs / "state.json").read_text(encoding="utf-8"))["state"])

    def steps_kept(self) -> list[int]:
        return sorted(int(f.parent.name[5:]) for f in self.checkpoints.glob("step-*/manifest.json"))

    def weights(self) -> bytes:
        return (self.outputs / "artifact/adapter_model.safetensors").read_bytes()


def children(pid: int) -> Iterator[int]:
    """Pids below `pid`."""
    import psutil

    for child in psutil.Process(pid).children(recursive=True):
        yield child.pid
