"""The image of a job on Azure ML: an environment of the workspace, named by what is in it.

Azure's own PyTorch environments (acpt-pytorch-2.8-cuda12.6 is the newest) have Python 3.10: too old for the pins.
https://github.com/Azure/azureml-assets, read at its commit of 2026-07-23. So Azure ML builds the default one from
its own base image and the pins, once a workspace and content:
https://learn.microsoft.com/azure/machine-learning/how-to-manage-environments-v2
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import date
from importlib.resources import files
from typing import Any

from backends.base import Site
from backends.container import Image
from launcher.errors import UnsupportedError
from launcher.spec import JobSpec

PYTHON = (3, 12)
NAME = "finelaunch"
PREBUILT = re.compile(r"mcr\.microsoft\.com/(?:azureml/curated/acpt-|aifx/acpt/.*-py3(?:8|9|10)-)")
CONDA = """\
channels:
- conda-forge
dependencies:
- python={python}
- pip
- pip:
"""


@functools.cache
def pins() -> tuple[str, ...]:
    """The `name==version` lines of train_entry/requirements.txt."""
    text = files("train_entry").joinpath("requirements.txt").read_text(encoding="utf-8")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(line for line in lines if line)


def built() -> Image:
    """What Azure ML builds on; Python and torch are those of the conda file.

    The base image brings NVIDIA's forward compatibility for nodes whose driver is older than CUDA 13.
    """
    torch = next(pin.partition("==")[2] for pin in pins() if pin.startswith("torch=="))
    major, minor = torch.split(".")[:2]
    return Image(
        ref="mcr.microsoft.com/azureml/openmpi5.0-cuda13.1-ubuntu24.04:latest",
        python=PYTHON,
        torch=(int(major), int(minor)),
        as_of=date(2026, 7, 23),
        url="https://github.com/Azure/AzureML-Containers",
    )


def environment(job: JobSpec, site: Site) -> dict[str, Any]:
    """The environment's properties, as EnvironmentVersions - Create Or Update takes them.

    Raises UnsupportedError naming the field that holds an image that can't do.
    """
    image = job.resources.image or site.get("image")
    if image is None:
        conda = CONDA.format(python=".".join(map(str, PYTHON))) + "".join(f"  - {pin}\n" for pin in pins())
        return {"image": built().ref, "condaFile": conda, "isAnonymous": False, "isArchived": False}
    field = "resources.image" if job.resources.image else "site.azureml.image"
    if PREBUILT.match(image):
        raise UnsupportedError(
            f"{field}: Azure's own training images have Python 3.10; the job needs Python 3.11 and torch 2.6",
            "leave it out, and Azure ML builds an image from the pins; or build docker/Dockerfile and name that",
        )
    if image.startswith("azureml:"):
        raise UnsupportedError(
            f"{field}: {image} is an environment, not an image",
            "name its image, or set backend_options.azureml.job.properties.environmentId and .environment: null",
        )
    return {"image": image, "isAnonymous": False, "isArchived": False}


def version(properties: Mapping[str, Any]) -> str:
    """The environment's version: equal content has an equal one, so that it is built once."""
    content = json.dumps(properties, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
