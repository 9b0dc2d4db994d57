"""The base model, its tokenizer, and which of its weights learn."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from train_entry.config import Model, TrainJob
from train_entry.embedded import PREFIX, cache_dir, clear_leftovers, embedded_folder
from train_entry.failure import JobError
from train_entry.folders import mounted, refuse_fetch
from train_entry.hub import hub_source, on_the_hub


def model_source(model: Model, inputs: Path) -> tuple[str, dict[str, Any]]:
    """(path or hub id, keyword arguments) for from_pretrained.

    A URI is read where it is mounted, else copied into the cache once. Raises JobError("model").
    """
    extra: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if model.id.startswith(PREFIX):
        return str(embedded_folder(model.id)), extra
    if "://" in model.id and (folder := _mounted_folder(model.id)) is not None:
        return str(folder), extra
    model = on_the_hub(model)
    if "://" in model.id:
        return str(_copy_here(model.id)), extra
    if (inputs / model.id).is_dir():
        return str(inputs / model.id), extra
    try:
        source = hub_source(model)
    except (OSError, ValueError) as exc:
        raise _not_loaded(model.id, exc) from exc
    return source, extra if source != model.id else {**extra, "revision": model.revision}


def load_tokenizer(job: TrainJob, inputs: Path) -> Any:
    """The model's tokenizer, with the user's chat template where there is one; a pad token is made sure."""
    from transformers import AutoTokenizer

    source, extra = model_source(job.model, inputs)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **extra)
    except (OSError, ValueError) as exc:
        raise _not_loaded(job.model.id, exc) from exc
    if job.model.chat_template:
        tokenizer.chat_template = (inputs / job.model.chat_template).read_text(encoding="utf-8")
    if tokenizer.eos_token_id is None:
        raise JobError("model", f"the tokenizer of {job.model.id} has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(job: TrainJob, inputs: Path, device: str) -> Any:
    """The base model on `device` ("cpu", "cuda:0"), 4-bit for qlora, not yet trainable by adapters."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    source, extra = model_source(job.model, inputs)
    dtype = weight_dtype(job, device)
    if job.tuning.kind == "qlora":
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if job.tuning.kind == "qlora" or device != "cpu":
        extra["device_map"] = {"": device}
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **extra)
    except torch.OutOfMemoryError as exc:
        raise JobError(
            "oom",
            f"{job.model.id} in {dtype} does not fit on this GPU: {exc}",
            "use tuning.kind: qlora, a smaller model, or a larger GPU under resources.gpu",
        ) from exc
    except (OSError, ValueError) as exc:
        raise _not_loaded(job.model.id, exc) from exc
    if job.tuning.kind == "qlora" and device == "cpu":
        _keep_differentiable(model)
    # A cache makes packed rows see each other (they are told apart by positions only without one).
    model.config.use_cache = False
    return model


def with_tuning(model: Any, job: TrainJob) -> Any:
    """The model with the job's trainable weights: fp32 LoRA adapters, or every weight."""
    from transformers import set_seed

    set_seed(job.train.seed)
    if job.tuning.kind == "full":
        return model
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    from train_entry.adapters import cast_adapters
    from train_entry.dropout import quicken

    if job.tuning.kind == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    targets = job.tuning.targets
    config = LoraConfig(
        r=job.tuning.r,
        lora_alpha=job.alpha,
        lora_dropout=job.tuning.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_dora=job.tuning.dora,
        use_rslora=job.tuning.rslora,
        task_type="CAUSAL_LM",
    )
    try:
        tuned = get_peft_model(model, config)
    except ValueError as exc:
        raise JobError(
            "config", f"tuning.targets {targets!r}: {exc}", "use all-linear, or names of the model's layers"
        ) from exc
    # get_peft_model writes the folder it was loaded from; the adapter must name what the user named.
    tuned.peft_config["default"].base_model_name_or_path = on_the_hub(job.model).id
    quicken(tuned)
    cast_adapters(tuned)
    return tuned


def weight_dtype(job: TrainJob, device: str) -> Any:
    """The torch dtype of the frozen weights; full fine-tuning keeps fp32 masters."""
    import torch

    if job.model.dtype != "auto":
        return getattr(torch, job.model.dtype)
    if job.tuning.kind == "full":
        return torch.float32
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if cpu_computes_bfloat16() else torch.float32


def cpu_computes_bfloat16() -> bool:
    """True where the processor has bfloat16 instructions; elsewhere bfloat16 is emulated and slower."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags


def _keep_differentiable(model: Any) -> None:
    """Keep bitsandbytes from repacking the 4-bit weights at the first forward pass in evaluation mode.

    On processors with AVX512-BF16 it does so in place, rounds their scales, and has no gradient from then on.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _mounted_folder(uri: str) -> Path | None:
    folder = mounted(uri)
    if folder is not None and not (folder / "config.json").is_file():
        raise JobError(
            "model",
            f"{uri} has no config.json (looked for in {folder})",
            "name a folder that save_pretrained wrote",
        )
    return folder


def _copy_here(uri: str) -> Path:
    """A model folder at a URI, copied into the cache once and whole."""
    import hashlib

    refuse_fetch("model", uri)
    try:
        import fsspec
    except ModuleNotFoundError as exc:
        raise JobError("model", f"reading {uri} needs fsspec") from exc
    target = cache_dir() / "models" / hashlib.sha256(uri.encode()).hexdigest()[:16]
    if not target.exists():
        clear_leftovers(target.parent)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            filesystem, path = fsspec.core.url_to_fs(uri)
            filesystem.get(path.rstrip("/") + "/", f"{temporary}/", recursive=True)
        except (OSError, ImportError, ValueError) as exc:
            raise JobError("model", f"could not read {uri}: {exc}", "check the URI and its rights") from exc
        temporary.rename(target)
    return target


def _not_loaded(model_id: str, exc: Exception) -> JobError:
    first = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
    return JobError(
        "model",
        f"could not load the model {model_id}: {first}",
        "check model.id; a gated model needs its token under secrets: [HF_TOKEN]",
    )
