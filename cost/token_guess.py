"""Tokens of rows without the model's tokenizer: characters by script over what a token has of them on average."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from cost.shapes import known_shape
from launcher.errors import ConfigError
from train_entry.config import TrainJob
from train_entry.data import with_system
from train_entry.rows import Row

ENGLISH, ELSE = 0.15, 0.40
"""How far such a total may be off, as a share of it: of English and program text, and of any other."""
ACCENTED = 0.004
"""Share of letters beyond ASCII from which Latin text is taken for another language than English."""
LOOKED_AT = 500
"""Rows whose characters are told apart; the others have the same mix."""
LARGE_VOCABULARY = 100_000
PER_MESSAGE, PER_ANSWER = 5, 1
"""Tokens that a chat template puts round a message (<|im_start|>user, line feed, <|im_end|>, line feed), and the
answer's end of turn."""
CHARACTERS: dict[str, tuple[float, float]] = {
    "ascii": (3.8, 4.3), "european": (2.6, 3.3), "latin": (0.6, 1.2), "digits": (1.0, 2.0), "greek": (0.95, 1.5),
    "cyrillic": (1.5, 2.4), "hebrew": (0.75, 2.0), "arabic": (0.8, 2.3), "indic": (0.55, 1.2), "thai": (0.7, 1.8),
    "kana": (0.75, 1.5), "han": (0.65, 1.1), "hangul": (0.55, 1.3), "other": (0.6, 1.2),
}  # fmt: skip
"""Characters a token by script: with a vocabulary of some 32,000 to 50,000, and with 100,000 and more. `european`
is ASCII among accented letters. Measured on Django 5.2's translations into 34 languages with the vocabularies of
Mistral 7B and SmolLM2 (small), Qwen and Mistral NeMo (large), 2026-11-25; two vocabularies of a size differ by up
to a third for a language, more for Indic and Greek."""
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
    each = _tokens_a_character(_scripts(rows), _large(job.model.id))
    found = []
    for row in rows:
        messages = with_system(job.data.system, row.messages)
        prompt = sum(len(m["content"]) for m in messages) * each + PER_MESSAGE * (len(messages) + 1)
        found.append((round(prompt), max(1, round(len(row.answer) * each)) + PER_ANSWER))
    return found


def error(rows: Sequence[Row]) -> float:
    """How far the total of such rows may be off, as a share of it."""
    scripts = _scripts(rows)
    return ENGLISH if scripts["ascii"] + scripts["digits"] > 0.95 * scripts.total() else ELSE


def _scripts(rows: Sequence[Row]) -> Counter[str]:
    """How many characters of each script some rows have."""
    looked = rows if len(rows) <= LOOKED_AT else random.Random(0).sample(rows, LOOKED_AT)
    found: Counter[str] = Counter()
    for row in looked:
        for text in (row.answer, *(m["content"] for m in row.messages)):
            found.update(Counter(map(script, text)))
    if found["latin"] > ACCENTED * found["ascii"]:
        found["european"] = found.pop("ascii", 0)
    return found


def _tokens_a_character(scripts: Mapping[str, int], large: bool) -> float:
    """Example: 43 ASCII letters and 11 Han characters, large vocabulary: (43 / 4.3 + 11 / 1.1) / 54 = 0.370."""
    total = sum(scripts.values())
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
