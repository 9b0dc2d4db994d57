"""Tokens of rows without the model's tokenizer: characters by script over what a token has of them on average."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from cost.shapes import known_shape
from launcher.errors import ConfigError
from train_entry.config import TrainJob
from train_entry.data import with_system
from train_entry.rows import Row

ERROR = 0.30
"""How far such a total may be off, as a share of it."""
LOOKED_AT = 500
"""Rows whose characters are told apart; the others have the same mix."""
LARGE_VOCABULARY = 100_000
PER_MESSAGE, PER_ANSWER = 5, 1
"""Tokens that a chat template puts round a message (<|im_start|>user, line feed, <|im_end|>, line feed), and the
answer's end of turn."""
CHARACTERS: dict[str, tuple[float, float]] = {
    "ascii": (3.8, 4.3), "latin": (2.0, 2.6), "digits": (1.0, 2.0), "greek": (1.2, 2.0), "cyrillic": (2.0, 3.0),
    "hebrew": (1.1, 2.2), "arabic": (1.1, 2.6), "indic": (0.7, 1.5), "thai": (0.8, 2.0), "kana": (0.9, 1.5),
    "han": (0.7, 1.2), "hangul": (0.6, 1.4), "other": (0.5, 1.0),
}  # fmt: skip
"""Characters a token by script: with a vocabulary of some 32,000 to 50,000, and with 100,000 and more."""
_RANGES = (
    (0x0250, "latin"), (0x0370, "other"), (0x0400, "greek"), (0x0530, "cyrillic"), (0x0590, "other"),
    (0x0600, "hebrew"), (0x0780, "arabic"), (0x0900, "other"), (0x0E00, "indic"), (0x0E80, "thai"),
    (0x1100, "other"), (0x1200, "hangul"), (0x1E00, "other"), (0x1F00, "latin"), (0x2000, "greek"),
    (0x2070, "ascii"), (0x3040, "other"), (0x3100, "kana"), (0x3400, "other"), (0xA000, "han"),
    (0xAC00, "other"), (0xD7B0, "hangul"),
)  # fmt: skip
"""End of each block of Unicode, and its script."""


def lengths(job: TrainJob, rows: Sequence[Row]) -> list[tuple[int, int]]:
    """(prompt, answer) in tokens of each row, by its number of characters."""
    each = _tokens_a_character(rows, _large(job.model.id))
    found = []
    for row in rows:
        messages = with_system(job.data.system, row.messages)
        prompt = sum(len(m["content"]) for m in messages) * each + PER_MESSAGE * (len(messages) + 1)
        found.append((round(prompt), max(1, round(len(row.answer) * each)) + PER_ANSWER))
    return found


def _tokens_a_character(rows: Sequence[Row], large: bool) -> float:
    """Example: 43 ASCII letters and 12 Han characters, large vocabulary: (43 / 4.3 + 12 / 1.2) / 55 = 0.364."""
    looked = rows if len(rows) <= LOOKED_AT else random.Random(0).sample(rows, LOOKED_AT)
    scripts: Counter[str] = Counter()
    for row in looked:
        for text in (row.answer, *(m["content"] for m in row.messages)):
            scripts.update(Counter(map(script, text)))
    total = scripts.total()
    return sum(n / CHARACTERS[name][large] for name, n in scripts.items()) / total if total else 0.0


def script(character: str) -> str:
    """The script of one character, as CHARACTERS names them."""
    code = ord(character)
    if code < 0x80:
        return "digits" if character.isdigit() else "ascii"
    return next((name for end, name in _RANGES if code < end), "other")


def _large(model_id: str) -> bool:
    """Has the model a large vocabulary? Unknown ones are taken for new, and new ones have."""
    try:
        return known_shape(model_id).vocab >= LARGE_VOCABULARY
    except ConfigError:
        return True
