"""A vendor's training image, played by a venv: the training environment, and what that image has besides."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from launcher.home import cache

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
WARM_CLIENT = CONSTRAINTS.parent / "tests" / "warm_client.py"
PACKAGES: dict[str, tuple[str, ...]] = {"sagemaker": ("boto3",), "vertex": (), "azureml": ()}
"""Vendor -> what its image holds that the pins of the training environment do not."""


def image_python(vendor: str, train: Path) -> Path:
    """The interpreter of the image over the training environment `train`; `make_image` makes it."""
    text = f"{PACKAGES[vendor]}{train}".encode() + CONSTRAINTS.read_bytes() + WARM_CLIENT.read_bytes()
    return cache() / "tests" / "images" / f"{vendor}-{hashlib.sha256(text).hexdigest()[:16]}" / "bin" / "python"


def make_image(vendor: str, train: Path) -> Path:
    """Build it once; needs a package index."""
    python = image_python(vendor, train)
    folder = python.parent.parent
    if python.exists():
        return python
    building = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    subprocess.run([train, "-m", "venv", "--without-pip", building], check=True)
    (site,) = building.glob("lib/python*/site-packages")
    if packages := PACKAGES[vendor]:
        pip = [train, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--target", site, "--constraint", CONSTRAINTS, *packages], check=True)
    found = subprocess.run(
        [train, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    (site / "training.pth").write_text(found.stdout)
    shutil.copy(WARM_CLIENT, site / "finelaunch_tests_warm.py")
    (site / "warm.pth").write_text("import finelaunch_tests_warm\n")
    building.rename(folder)
    return python
