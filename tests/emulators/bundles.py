"""Bundles of one large file, for what sends them in parts."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from backends.base import Bundle, BundleFile


def bundle(folder: Path, name: str, content: bytes) -> Bundle:
    """`content` as the file model/NAME; its source is folder/NAME."""
    (folder / name).write_bytes(content)
    digest = sha256(content).hexdigest()
    file = BundleFile(path=f"model/{name}", size=len(content), sha256=digest, source=folder / name)
    return Bundle(sha256=sha256(name.encode() + content).hexdigest(), files=(file,))
