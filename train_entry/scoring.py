"""Figures from expected and given answers; scikit-learn and rouge-score hold the formulas."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

OTHER = "(other)"


def classification(expected: Sequence[str], given: Sequence[str | None], labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro-F1, figures per class and the confusion matrix (rows: expected, columns: given).

    `given` is a label, or None for an answer that is none: it is counted as wrong, in the column "(other)".
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    answers = [g if g in labels else OTHER for g in given]
    precision, recall, f1, support = precision_recall_fscore_support(
        expected, answers, labels=list(labels), zero_division=0
    )
    columns = [*labels, *([OTHER] if OTHER in answers else [])]
    matrix = confusion_matrix(expected, answers, labels=columns)[: len(labels)]
    return {
        "rows": len(expected),
        "accuracy": float(accuracy_score(expected, answers)),
        "macro_f1": float(sum(f1) / len(labels)),
        "per_class": {
            label: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, label in enumerate(labels)
        },
        "confusion_matrix": {"labels": list(labels), "columns": columns, "rows": matrix.tolist()},
    }


def as_label(answer: str, labels: Sequence[str]) -> str | None:
    """The label that a free answer names: its first line without case, quotes and end punctuation."""
    first = next((line for line in answer.strip().splitlines() if line.strip()), "")
    said = first.strip(" \t\"'`*.,;:!").casefold()
    return next((label for label in labels if said == label.casefold()), None)


def extraction(expected: Sequence[str], given: Sequence[str]) -> dict[str, Any]:
    """Exact match of whole objects and F1 over (field, value) pairs, in all and per field."""
    pairs = [(_object(e), _object(g)) for e, g in zip(expected, given, strict=True)]
    fields = sorted({name for wanted, _ in pairs for name in (wanted or {})})
    return {
        "rows": len(pairs),
        "exact_match": _mean([float(w is not None and _canonical(w) == _canonical(g)) for w, g in pairs]),
        "field_f1": _pair_f1(pairs, None),
        "per_field": {name: _pair_f1(pairs, name) for name in fields},
        "invalid_json": sum(g is None for _, g in pairs),
    }


def generation(expected: Sequence[str], given: Sequence[str]) -> dict[str, Any]:
    """Mean ROUGE-L F-measure, with stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [scorer.score(e, g)["rougeL"].fmeasure for e, g in zip(expected, given, strict=True)]
    return {"rows": len(scores), "rouge_l": _mean(scores)}


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object in an answer, also inside a code fence; None when there is none."""
    match = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        loaded = json.loads(match.group()) if match else None
    except json.JSONDecodeError:
        return None
    return loaded if isinstance(loaded, dict) else None


def _pair_f1(pairs: Sequence[tuple[dict[str, Any] | None, dict[str, Any] | None]], only: str | None) -> float:
    hit = wanted_n = given_n = 0
    for wanted, given in pairs:
        want = {(k, _canonical(v)) for k, v in (wanted or {}).items() if only in (None, k)}
        gave = {(k, _canonical(v)) for k, v in (given or {}).items() if only in (None, k)}
        hit += len(want & gave)
        wanted_n += len(want)
        given_n += len(gave)
    return 2 * hit / (wanted_n + given_n) if wanted_n + given_n else 0.0


def _canonical(value: Any) -> str:
    """Equal text for equal JSON; in Python 1 == True."""
    return json.dumps(value, sort_keys=True)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
