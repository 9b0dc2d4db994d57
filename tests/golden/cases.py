"""The jobs that every backend renders, and the raw options that put one of them into a private network."""

from __future__ import annotations

from typing import Any

BASE: dict[str, Any] = {
    "name": "triage",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "task": "classification",
    "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
    "resources": {"gpu": "A100", "max_hours": 4},
    "tags": {"team": "support"},
}
DIGEST = "sha256:" + "0123456789abcdef" * 4

CASES: dict[str, dict[str, Any]] = {
    "one_gpu": {},
    "eight_gpus": {"resources": {"gpu": "H100", "gpus": 8, "max_hours": 4}},
    "two_nodes": {"resources": {"gpu": "H100", "gpus": 8, "nodes": 2, "max_hours": 4}},
    "spot": {"resources": {"gpu": "A100", "spot": True, "max_hours": 4, "max_wait_hours": 6}},
    "own_image_private_network": {
        "resources": {"gpu": "A100", "image": f"registry.example.com/team/train@{DIGEST}"}
    },
    "offline": {
        "model": "model",  # a folder beside the job file
        "resources": {"gpu": "A100", "offline": True},
    },
    "secrets": {"secrets": ["HF_TOKEN"]},
    "qlora": {"tuning": "qlora"},
    "full": {"tuning": "full", "output": {"merged": False}},
    "model_cache": {"model": {"id": "meta-llama/Llama-3.1-8B-Instruct", "cache": True}},
    "env_and_disk": {"env": {"COLOUR": "blue"}, "resources": {"gpu": "A100", "disk_gib": 500, "region": "REGION"}},
}
"""Case -> what it changes in BASE; REGION stands for a region of the backend's."""

PRIVATE_NETWORK: dict[str, dict[str, Any]] = {}
"""Backend -> the raw options of own_image_private_network."""

REGIONS: dict[str, str] = {}
"""Backend -> a region of its own."""

FACTS: dict[str, dict[str, str]] = {}
"""Backend -> account facts, as launch setup would keep them."""
