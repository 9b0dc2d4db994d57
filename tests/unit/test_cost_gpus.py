"""GPUs are found under every name that clouds and drivers give them, and an unknown one is not guessed."""

from __future__ import annotations

import pytest

from backends.skypilot.machines import GPUS as skypilot_gpus
from backends.skypilot.machines import Gpu as SkyPilotGpu
from cost.gpus import GPUS, SOURCES, find_gpu
from launcher.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("A100", "A100-40GB"),
        ("A100-80GB", "A100-80GB"),
        ("a100_80gb", "A100-80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA_TESLA_T4", "T4"),
        ("Tesla V100", "V100-16GB"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("H100-MEGA", "H100-SXM"),
        ("H200", "H200-SXM"),
        ("l40s", "L40S"),
        ("NVIDIA RTX A4000", "A4000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX6000-Ada"),
        ("RTXPRO6000", "RTXPRO6000"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_a_gpu_has_many_names(name: str, expected: str) -> None:
    assert find_gpu(name).name == expected


@pytest.mark.parametrize("gpu", skypilot_gpus)
def test_every_gpu_that_skypilot_offers_is_known(gpu: SkyPilotGpu) -> None:
    assert abs(find_gpu(gpu.name, gpu.memory_gib).memory_gib / gpu.memory_gib - 1) < 0.1


@pytest.mark.parametrize(
    ("memory", "expected"), [(40.0, "A100-40GB"), (80.0, "A100-80GB"), (39.4, "A100-40GB"), (None, "A100-40GB")]
)
def test_memory_tells_two_sizes_of_one_name_apart(memory: float | None, expected: str) -> None:
    assert find_gpu("A100", memory).name == expected


def test_memory_does_not_change_a_full_name() -> None:
    assert find_gpu("A100-80GB", 40.0).name == "A100-80GB"


def test_an_unknown_gpu_gets_a_guess() -> None:
    with pytest.raises(ConfigError) as caught:
        find_gpu("H1OO")
    assert "'H1OO'" in caught.value.message
    assert (caught.value.hint or "").startswith("did you mean H100-SXM?")


def test_a_name_like_no_other_gets_the_list() -> None:
    with pytest.raises(ConfigError) as caught:
        find_gpu("abacus")
    assert "did you mean" not in (caught.value.hint or "")
    assert "A100-80GB" in (caught.value.hint or "")


def test_no_alias_belongs_to_two_gpus() -> None:
    for gpu in GPUS.values():
        for alias in (gpu.name, *gpu.aliases):
            assert find_gpu(alias) is gpu, alias


def test_every_gpu_is_possible() -> None:
    for gpu in GPUS.values():
        assert gpu.generation in SOURCES
        assert 8 < gpu.memory_gib < 300
        assert 0.3 <= gpu.sustained <= 0.87, gpu.name  # 0.87: the best burst measured on any of them
        assert gpu.fabric_gbs <= gpu.link_gbs or gpu.name.startswith("GB"), gpu.name
        assert gpu.hbm_gbs > gpu.link_gbs


def test_old_generations_have_no_bfloat16() -> None:
    assert not find_gpu("T4").bf16
    assert not find_gpu("V100-32GB").bf16
    assert find_gpu("L4").bf16
    assert find_gpu("L4").fp8
    assert not find_gpu("A100").fp8
