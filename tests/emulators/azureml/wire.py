"""What arrives and what goes back: requests with their operation's name, answers, and what goes wrong between."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Request:
    """One request, its path without escapes."""

    method: str
    host: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")


@dataclass(kw_only=True)
class Answer:
    """What goes back."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def told(value: Any, status: int = 200, **headers: str) -> Answer:
    """JSON."""
    body = json.dumps(value).encode()
    return Answer(status=status, body=body, headers={"Content-Type": "application/json", **headers})


def refused(status: int, code: str, message: str) -> Answer:
    """An error as Azure Resource Manager writes it."""
    return told({"error": {"code": code, "message": message}}, status)


def refused_blob(status: int, code: str, message: str) -> Answer:
    """An error as a storage account writes it."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    headers = {"Content-Type": "application/xml", "x-ms-error-code": code}
    return Answer(status=status, body=body, headers=headers)
