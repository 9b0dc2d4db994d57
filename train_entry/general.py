"""What a model forgets while it learns: general questions that are scored before and after.

The questions and answers were written for this project and are dedicated to the public domain (CC0-1.0). They are
none of the user's business and few: one forward pass each. The score is the mean log-probability of the answers'
tokens; where it falls, the model has paid for what it learnt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from train_entry.config import TrainJob
from train_entry.data import Example, tokenize
from train_entry.memory import Passes
from train_entry.rows import Row

SCORE = "mean log-probability of the answers' tokens, without the end of turn"
QUESTIONS = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("How many days does a week have?", "A week has seven days."),
    ("What is 12 plus 30?", "12 plus 30 is 42."),
    ("Why is the sky blue?", "Because air scatters the blue part of sunlight more than the red part."),
    ("Translate into Spanish: Good morning.", "Buenos días."),
    ("Name three primary colours.", "Red, yellow and blue."),
    ("What does a thermometer measure?", "A thermometer measures temperature."),
    ("Write a Python function that adds two numbers.", "def add(a, b):\n    return a + b"),
    ("Give me a synonym of 'quick'.", "Fast."),
    ("At what temperature does water boil at sea level?", "Water boils at 100 degrees Celsius at sea level."),
    ("Who wrote Romeo and Juliet?", "William Shakespeare wrote Romeo and Juliet."),
    ("What is the opposite of 'ancient'?", "Modern."),
    ("Sort these numbers: 9, 2, 5.", "2, 5, 9"),
    ("Put this sentence into the past tense: She walks to school.", "She walked to school."),
    ("What gas do plants take in from the air?", "Plants take in carbon dioxide."),
    (
        "I lost my keys. Say something kind in one sentence.",
        "I'm sorry to hear that, and I hope you find them soon.",
    ),
)


def score(model: Any, tokenizer: Any, job: TrainJob, tick: Callable[[], None]) -> dict[str, Any]:
    """{questions, scoring, log_prob, perplexity} of the model as it is; `tick` is called before each question."""
    import torch

    # The job's own system message would make other questions of them.
    plain = dataclasses.replace(job, data=dataclasses.replace(job.data, system=None))
    was_training = model.training
    model.eval()

    def answered(numbers: Sequence[int]) -> list[tuple[float, int]]:
        tick()
        return [_log_prob(model, tokenize(plain, tokenizer, _as_row(number))) for number in numbers]

    with torch.inference_mode():
        found = Passes(1, "the scoring of general questions").over(range(len(QUESTIONS)), answered)
    model.train(was_training)
    total, count = (sum(part) for part in zip(*found, strict=True))
    mean = total / count
    return {"questions": len(QUESTIONS), "scoring": SCORE, "log_prob": mean, "perplexity": math.exp(-mean)}


def _as_row(number: int) -> Row:
    question, answer = QUESTIONS[number]
    return Row(f"general:{number + 1}", ({"role": "user", "content": question},), answer)


def _log_prob(model: Any, row: Example) -> tuple[float, int]:
    """(log-probability of the row's answer, its tokens)."""
    import torch

    wanted = torch.tensor(row.completion[:-1])
    ids = torch.tensor([[*row.prompt, *row.completion[:-1]]], device=model.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(wanted) + 1).logits[0, :-1].float()
    return float(logits.log_softmax(-1).cpu()[range(len(wanted)), wanted].sum()), len(wanted)


def drop(before: dict[str, Any] | None, after: dict[str, Any] | None) -> float | None:
    """What the tuned model lost of the base model's log-probability; None when one was not scored."""
    first, second = ((metrics or {}).get("general") for metrics in (before, after))
    return first["log_prob"] - second["log_prob"] if first and second else None
