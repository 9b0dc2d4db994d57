"""Small packages for tests of what pip is asked to do: wheels and an sdist, made by hand."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

BACKEND = """\
import os, time, zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "{name}-{version}-py3-none-any.whl"
    date = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH") or time.time()))[:6]
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        for path, text in {files!r}.items():
            wheel.writestr(zipfile.ZipInfo(path, date), text)
    return name
"""
"""Dates as setuptools gives them."""


def contents(name: str, version: str, requires: Sequence[str] = (), tag: str = "py3-none-any") -> dict[str, str]:
    """Path -> text of a wheel with one module that knows its version."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    return {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{info}/RECORD": f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n",
    }


def make_wheel(
    folder: Path, name: str, version: str, requires: Sequence[str] = (), tag: str = "py3-none-any"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for inside, text in contents(name, version, requires, tag).items():
            wheel.writestr(inside, text)
    return path


def make_sdist(folder: Path, name: str, version: str, requires: Sequence[str] = ()) -> Path:
    """Source that builds itself, so that nothing else is needed to make a wheel of it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}.tar.gz"
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "build"\nbackend-path = ["."]\n',
        "build.py": BACKEND.format(name=name, version=version, files=contents(name, version, requires)),
    }
    with tarfile.open(path, "w:gz") as archive:
        for inside, text in files.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{inside}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path
