"""On a rank's path before everything else: its model fails or hangs in a real training step, as a device would.

MISHAP is JSON: {"kind": "oom", "tokens": most that fit a forward pass}, {"kind": "oom in evaluation"},
{"kind": "hang", "rank": r}, {"kind": "hang in baseline"} or {"kind": "slow evaluation"}, a second a pass.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time


class OnLoad:
    """Wraps train_entry.models.with_tuning when that module is loaded."""

    def find_spec(self, name, path=None, target=None):
        if name != "train_entry.models":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            if json.loads(os.environ["MISHAP"])["kind"] == "hang in baseline":
                based = module.load_base
                module.load_base = lambda *given: prepared(based(*given))
            tuned = module.with_tuning
            module.with_tuning = lambda model, job: prepared(tuned(model, job))

        spec.loader.exec_module = exec_module
        return spec


def prepared(model):
    import torch

    mishap, seen = json.loads(os.environ["MISHAP"]), 0

    def before(module, args, given):
        nonlocal seen
        if not module.training:
            if mishap["kind"] == "oom in evaluation" and seen:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
            if mishap["kind"] == "slow evaluation" and seen:
                time.sleep(1)
            if mishap["kind"] == "hang in baseline":
                time.sleep(600)
            return
        seen += 1
        if mishap["kind"] == "oom" and given["input_ids"].numel() > mishap["tokens"] and seen > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if mishap["kind"] == "hang" and int(os.environ.get("RANK", "0")) == mishap["rank"] and seen > 3:
            time.sleep(600)

    model.register_forward_pre_hook(before, with_kwargs=True)
    return model


if "MISHAP" in os.environ:
    sys.meta_path.insert(0, OnLoad())
