"""Every field of the job file on every backend: it is in the request, in job.json, or refused by name."""

from __future__ import annotations

import pytest

from backends import registry
from tests.golden.fields import FIELDS, expression, schema_fields
from tests.golden.table import TARGET, table

BACKENDS = [name for name in registry.BUILTIN if name != "local"]


def test_every_field_of_the_schema_is_tried() -> None:
    assert set(FIELDS) == schema_fields()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_field_is_dropped(backend: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    dropped = [f for f in FIELDS if expression(backend, f, tmp_path_factory.mktemp("fields")) == "dropped"]
    assert dropped == []


def test_the_page_says_what_the_requests_say() -> None:
    assert TARGET.read_text(encoding="utf-8") == table(), "python -m tests.golden.table writes it anew"
