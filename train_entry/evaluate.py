"""How good a model is on held-out rows: by scoring labels, by letting it answer, by the user's own scorer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from train_entry import scoring
from train_entry.config import TrainJob
from train_entry.data import Example, completion_ids, render
from train_entry.failure import JobError
from train_entry.memory import Passes
from train_entry.rows import Row

Tick = Callable[[], None]
"""Called between batches; raises Stopped when the job must stop."""

PACK_TOKENS = 4096
"""Tokens a packed sequence: its mask and attention grow with the square."""
LABEL_SCORE = "mean log-probability of the label's tokens and the end-of-turn token"


def judge(
    model: Any, tokenizer: Any, job: TrainJob, rows: Sequence[Example], labels: Sequence[str] | None,
    inputs: Path, tick: Tick,
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """(metrics, the answers given) of the model on `rows`. The model's mode and cache setting are restored."""
    was_training, use_cache = model.training, model.config.use_cache
    model.eval()
    try:
        if job.task == "classification":
            metrics, answers = _classify(model, tokenizer, job, rows, labels or (), tick)
        else:
            answers = generate(model, tokenizer, rows, job.eval.max_new_tokens, job.eval.batch_size, tick)
            score = scoring.extraction if job.task == "extraction" else scoring.generation
            metrics = {"method": "generation", **score([e.row.answer for e in rows], answers)}
    finally:
        model.train(was_training)
        model.config.use_cache = use_cache
    if job.eval.scorer:
        metrics["scorer"] = _own_score(inputs / job.eval.scorer, rows, answers)
    return metrics, answers


def _classify(
    model: Any, tokenizer: Any, job: TrainJob, rows: Sequence[Example], labels: Sequence[str], tick: Tick
) -> tuple[dict[str, Any], list[str]]:
    expected = [e.row.answer.strip() for e in rows]
    scores = label_scores(model, tokenizer, job, rows, labels, tick)
    best = [labels[max(range(len(labels)), key=row.__getitem__)] for row in scores]
    metrics: dict[str, Any] = {"method": "label_scoring", "scoring": LABEL_SCORE}
    metrics |= scoring.classification(expected, best, labels)
    if job.eval.generation:
        longest = max(len(ids) for ids in _label_tokens(tokenizer, job, rows[0], labels))
        free = generate(model, tokenizer, rows, longest + 2, job.eval.batch_size, tick)
        named = [scoring.as_label(answer, labels) for answer in free]
        metrics["generation"] = {
            "method": "generation",
            **scoring.classification(expected, named, labels),
            "invalid": sum(n is None for n in named),
        }
    return metrics, best


def label_scores(
    model: Any, tokenizer: Any, job: TrainJob, rows: Sequence[Example], labels: Sequence[str], tick: Tick
) -> list[list[float]]:
    """scores[row][label]: the mean log-probability of the label's tokens and the end of turn (LABEL_SCORE).

    Full-attention models get several rows in one sequence: the common beginning once, each row's rest once,
    every label a branch of its own under a block mask (exact). Others get one sequence a label.
    """
    import torch

    branches = [_label_tokens(tokenizer, job, row, labels) for row in rows]
    score = _score_packed if _takes_block_masks(model) else _score_plain
    found: list[list[float]] = []
    passes = Passes(job.eval.batch_size, "the scoring of labels")

    def scored(numbers: Sequence[int]) -> list[list[float]]:
        tick()
        with torch.inference_mode():
            return score(model, [list(rows[i].prompt) for i in numbers], [branches[i] for i in numbers])

    for start, end in _packs(rows, branches, job.eval.batch_size):
        found += passes.over(range(start, end), scored)
    return found


def _packs(
    rows: Sequence[Example], branches: Sequence[list[list[int]]], most_rows: int
) -> Iterator[tuple[int, int]]:
    """Neighbouring rows to score together: at most `most_rows`, and PACK_TOKENS unless one row has more."""
    start = tokens = 0
    for i, row in enumerate(rows):
        size = len(row.prompt) + sum(map(len, branches[i]))
        if i > start and (i - start == most_rows or tokens + size > PACK_TOKENS):
            yield start, i
            start, tokens = i, 0
        tokens += size
    if start < len(rows):
        yield start, len(rows)


def generate(
    model: Any, tokenizer: Any, rows: Sequence[Example], new_tokens: int, batch_size: int, tick: Tick
) -> list[str]:
    """The model's greedy answers, in the order of `rows`."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt))
    model.config.use_cache = True

    def answered(numbers: Sequence[int]) -> list[str]:
        tick()
        return _answers(model, tokenizer, [rows[i].prompt for i in numbers], new_tokens)

    answers = Passes(batch_size, "the answering").over(order, answered)
    return [answer for _, answer in sorted(zip(order, answers, strict=True))]


def _answers(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[str]:
    """The greedy answers to the prompts, in one batch."""
    import torch

    width = max(map(len, prompts))
    pads = [width - len(prompt) for prompt in prompts]
    ids = [[tokenizer.pad_token_id] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
    mask = [[0] * pad + [1] * (width - pad) for pad in pads]
    with torch.inference_mode():
        out = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=_end_tokens(model, tokenizer),
        )
    return [text.strip() for text in tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokenizer's end and those that the model's makers name: a turn may end otherwise than a text."""
    named = getattr(model.generation_config, "eos_token_id", None)
    more = [] if named is None else named if isinstance(named, list) else [named]
    return sorted({tokenizer.eos_token_id, *more})


def _label_tokens(tokenizer: Any, job: TrainJob, row: Example, labels: Sequence[str]) -> list[list[int]]:
    """Each label as this row's answer, tokenised as in training."""
    answers = (Row(row.row.where, row.row.messages, label) for label in labels)
    return [list(completion_ids(tokenizer, render(job, tokenizer, answer)[1])) for answer in answers]


def _takes_block_masks(model: Any) -> bool:
    """True for models whose every layer attends to all earlier tokens under the mask that it is given."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    plain = config._attn_implementation in ("sdpa", "eager") and kinds == {"full_attention"}
    known = ("llama", "qwen2", "qwen3", "mistral", "gemma", "phi3", "olmo2", "smollm3", "granite")
    return plain and config.model_type in known and not getattr(config, "sliding_window", None)


def _score_packed(model: Any, prompts: list[list[int]], branches: list[list[list[int]]]) -> list[list[float]]:
    """One sequence: shared prefix, then each row's rest, then each row's labels as sibling branches."""
    import torch

    shared = min(_common_prefix(prompts), min(map(len, prompts)) - 1)
    ids, position = list(prompts[0][:shared]), list(range(shared))
    row_of, branch_of = [0] * shared, [0] * shared
    wanted: list[tuple[int, int, int, int]] = []  # (row, label, place that predicts, token)
    for r, (prompt, labels) in enumerate(zip(prompts, branches, strict=True), 1):
        ids += prompt[shared:]
        position += range(shared, len(prompt))
        row_of += [r] * (len(prompt) - shared)
        branch_of += [0] * (len(prompt) - shared)
        last = len(ids) - 1
        for b, label in enumerate(labels, 1):
            wanted.append((r - 1, b - 1, last, label[0]))
            for k, token in enumerate(label[:-1]):
                ids.append(token)
                position.append(len(prompt) + k)
                row_of.append(r)
                branch_of.append(b)
                wanted.append((r - 1, b - 1, len(ids) - 1, label[k + 1]))
    device = model.device
    rows, marks = torch.tensor(row_of, device=device), torch.tensor(branch_of, device=device)
    sees = (rows[None, :] == 0) | (
        (rows[:, None] == rows[None, :]) & ((marks[None, :] == 0) | (marks[:, None] == marks[None, :]))
    )
    sees &= torch.ones_like(sees).tril()
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    mask = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(~sees, torch.finfo(dtype).min)
    places = sorted({place for _, _, place, _ in wanted})
    logits = model(
        input_ids=torch.tensor([ids], device=device),
        attention_mask=mask[None, None],
        position_ids=torch.tensor([position], device=device),
        use_cache=False,
        logits_to_keep=torch.tensor(places, device=device),
    ).logits[0]
    logits = logits.float()
    index = {place: i for i, place in enumerate(places)}
    at = torch.tensor([index[p] for _, _, p, _ in wanted], device=device)
    tokens = torch.tensor([t for *_, t in wanted], device=device)
    # Not log_softmax: that would be a second copy of all logits.
    picked = (logits[at, tokens] - logits.logsumexp(-1)[at]).tolist()
    sums = [[0.0] * len(labels) for labels in branches]
    for (r, b, _, _), value in zip(wanted, picked, strict=True):
        sums[r][b] += value / len(branches[r][b])
    return sums


def _score_plain(model: Any, prompts: list[list[int]], branches: list[list[list[int]]]) -> list[list[float]]:
    """One sequence a label, one row a batch: the definition, for any architecture."""
    import torch

    found = []
    for prompt, labels in zip(prompts, branches, strict=True):
        width = len(prompt) + max(map(len, labels))
        ids = torch.zeros(len(labels), width, dtype=torch.long)
        mask = torch.zeros(len(labels), width, dtype=torch.long)
        for i, label in enumerate(labels):
            both = prompt + label
            ids[i, : len(both)] = torch.tensor(both)
            mask[i, : len(both)] = 1
        out = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
        logprob = out.logits.float().log_softmax(-1).cpu()
        found.append(
            [
                sum(float(logprob[i, len(prompt) - 1 + k, token]) for k, token in enumerate(label)) / len(label)
                for i, label in enumerate(labels)
            ]
        )
    return found


def _common_prefix(prompts: list[list[int]]) -> int:
    first, last = min(prompts), max(prompts)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def _own_score(path: Path, rows: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    """What the user's score(rows, answers) returns; rows are {"messages", "answer"}."""
    spec = importlib.util.spec_from_file_location("user_scorer", path)
    if spec is None or spec.loader is None:
        raise JobError("config", f"eval.scorer {path.name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    plain = [{"messages": list(e.row.messages), "answer": e.row.answer} for e in rows]
    try:
        spec.loader.exec_module(module)
        result = {str(k): float(v) for k, v in module.score(plain, list(answers)).items()}
    except Exception as exc:
        raise JobError(
            "config",
            f"eval.scorer {path.name}: {type(exc).__name__}: {exc}",
            "it must define score(rows, answers) -> dict of numbers",
        ) from exc
    return result
