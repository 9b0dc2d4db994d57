"""On a rank's path before everything else: its model fails or hangs in a real training step, as a device would.

MISHAP is JSON: {"kind": "oom", "tokens": most that fit a pass of training, "judged": and one of judging, "rank":
the only one that is short of memory}, {"kind": "oom in evaluation"}, {"kind": "hang", "rank": r},
{"kind": "hang in baseline"}, {"kind": "slow evaluation"}, a second a pass,
{"kind": "slow merging", "s": seconds, "over": do the job's hours end in it?}, or {"kind": "slow moving"}, the
artifact's, on a mount that renames no folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
from pathlib import Path


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
    mine = mishap.get("rank", 0) == int(os.environ.get("RANK", "0"))

    def refuse_more_than(tokens, given):
        if given["input_ids"].numel() > tokens:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def before(module, args, given):
        nonlocal seen
        if not module.training:
            if mishap["kind"] == "oom" and seen:
                refuse_more_than(mishap.get("judged", float("inf")), given)
            if mishap["kind"] == "oom in evaluation" and seen:
                refuse_more_than(0, given)
            if mishap["kind"] == "slow evaluation" and seen:
                time.sleep(1)
            if mishap["kind"] == "hang in baseline":
                time.sleep(600)
            return
        seen += 1
        if mishap["kind"] == "oom" and mine and seen > 2:
            refuse_more_than(mishap["tokens"], given)
        if mishap["kind"] == "hang" and mine and seen > 3:
            time.sleep(600)

    model.register_forward_pre_hook(before, with_kwargs=True)
    if mishap["kind"] == "slow merging":
        merge = model.merge_and_unload
        model.merge_and_unload = lambda: slow_merging(merge, mishap["s"], mishap.get("over"))
    if mishap["kind"] == "slow moving":
        slow_moving()
    return model


def slow_merging(merge, seconds, over):
    from train_entry.stop import StopWatch

    if over:
        reason = StopWatch.reason
        StopWatch.reason = lambda self: reason(self) or "deadline"
    time.sleep(seconds)
    return merge()


def slow_moving():
    from train_entry import artifact, stop

    stop.TIDY_S = 0.5
    move, copy = artifact.move_tree, shutil.copyfile

    def rename(*_):
        raise OSError("no folder is renamed here")

    def copy_slowly(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:10])
        time.sleep(0.5)
        copy(source, target)

    def slowly(source, target):
        Path.rename, shutil.copyfile = rename, copy_slowly
        move(source, target)
        shutil.copyfile = copy

    artifact.move_tree = slowly


if "MISHAP" in os.environ:
    sys.meta_path.insert(0, OnLoad())
