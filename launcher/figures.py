"""What a model was judged to be, before and after, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

FIGURES = ("accuracy", "macro_f1", "exact_match", "field_f1", "rouge_l")
FIGURE_NAMES = {
    "accuracy": "accuracy", "macro_f1": "macro-F1", "exact_match": "exact match", "field_f1": "field F1",
    "rouge_l": "ROUGE-L",
}  # fmt: skip


def figures_table(evaluation: Mapping[str, Any]) -> Table | None:
    """Baseline against tuned, one line a figure; None when nothing was judged."""
    before, after = evaluation.get("baseline") or {}, evaluation.get("tuned") or {}
    if not (before or after):
        return None
    rows = (after or before)["rows"]
    table = Table(title=f"on {rows} held-out rows", title_justify="left", title_style="dim", header_style="bold")
    table.add_column("")
    for name in ("baseline", "tuned", "change"):
        table.add_column(name, justify="right")
    for group, label in ((None, ""), ("generation", ", answering freely")):
        b = before if group is None else before.get(group) or {}
        a = after if group is None else after.get(group) or {}
        named = label or (", choosing a label" if "generation" in (after or before) else "")
        for figure in FIGURES:
            if figure in b or figure in a:
                table.add_row(f"{FIGURE_NAMES[figure]}{named}", *_change(b.get(figure), a.get(figure)))
    for figure, value in (after.get("scorer") or before.get("scorer") or {}).items():
        table.add_row(f"scorer: {figure}", *_change((before.get("scorer") or {}).get(figure), value))
    general = [(side.get("general") or {}).get("log_prob") for side in (before, after)]
    if general != [None, None]:
        table.add_row("general questions, log-prob a token", *_change(*general))
    return table


def confusion_table(metrics: Mapping[str, Any]) -> Table | None:
    """The confusion matrix of one evaluation: a row an expected label, a column an answer."""
    matrix = metrics.get("confusion_matrix")
    if not matrix or len(matrix["labels"]) > 12:
        return None
    table = Table(title="expected (rows) and answered (columns), tuned", title_justify="left", title_style="dim")
    table.add_column("")
    for column in matrix["columns"]:
        table.add_column(column, justify="right")
    table.add_column("F1", justify="right", style="dim")
    for label, row in zip(matrix["labels"], matrix["rows"], strict=True):
        cells = [
            Text(str(n), style="green bold" if c == label else ("red" if n else "dim"))
            for c, n in zip(matrix["columns"], row, strict=True)
        ]
        table.add_row(label, *cells, f"{metrics['per_class'][label]['f1']:.2f}")
    return table


def _change(before: float | None, after: float | None) -> tuple[str, str, Text]:
    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    if before is None or after is None:
        return cell(before), cell(after), Text("-")
    delta = after - before
    return cell(before), cell(after), Text(f"{delta:+.3f}", style="green" if delta > 0 else "red")
