"""SageMaker's training machines with GPUs, and which of them fit what a job wants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from backends.gpus import of_model
from cost.offers import Offer
from launcher.errors import CapacityError, UnsupportedError
from launcher.spec import Resources

SCARCE = "mostly sold through training plans: backend_options.sagemaker.ResourceConfig.TrainingPlanArn"


@dataclass(frozen=True)
class Machine:
    """One instance type: its GPUs, its memory, the NVMe disk that comes with it."""

    name: str
    gpus: int
    host_gib: int
    nvme_gb: int


@dataclass(frozen=True)
class Family:
    """One GPU model and the machines that have it."""

    gpu: str
    memory_gib: float
    machines: tuple[Machine, ...]
    names: tuple[str, ...] = ()
    """What else users call it."""
    note: str | None = None


FAMILIES = (
    Family("L4", 24, (
        Machine("ml.g6.xlarge", 1, 16, 250), Machine("ml.g6.2xlarge", 1, 32, 450),
        Machine("ml.g6.4xlarge", 1, 64, 600), Machine("ml.g6.8xlarge", 1, 128, 900),
        Machine("ml.g6.16xlarge", 1, 256, 1880), Machine("ml.g6.12xlarge", 4, 192, 3760),
        Machine("ml.g6.24xlarge", 4, 384, 3760), Machine("ml.g6.48xlarge", 8, 768, 7520),
    )),
    Family("A10G", 24, (
        Machine("ml.g5.xlarge", 1, 16, 250), Machine("ml.g5.2xlarge", 1, 32, 450),
        Machine("ml.g5.4xlarge", 1, 64, 600), Machine("ml.g5.8xlarge", 1, 128, 900),
        Machine("ml.g5.16xlarge", 1, 256, 1900), Machine("ml.g5.12xlarge", 4, 192, 3800),
        Machine("ml.g5.24xlarge", 4, 384, 3800), Machine("ml.g5.48xlarge", 8, 768, 7600),
    ), ("A10",)),
    Family("A100", 40, (Machine("ml.p4d.24xlarge", 8, 1152, 8000),), ("A100-40GB",)),
    Family("L40S", 48, (
        Machine("ml.g6e.xlarge", 1, 32, 250), Machine("ml.g6e.2xlarge", 1, 64, 450),
        Machine("ml.g6e.4xlarge", 1, 128, 600), Machine("ml.g6e.8xlarge", 1, 256, 900),
        Machine("ml.g6e.16xlarge", 1, 512, 1900), Machine("ml.g6e.12xlarge", 4, 384, 3800),
        Machine("ml.g6e.24xlarge", 4, 768, 3800), Machine("ml.g6e.48xlarge", 8, 1536, 7600),
    )),
    Family("RTXPRO6000", 96, (
        Machine("ml.g7e.2xlarge", 1, 64, 1900), Machine("ml.g7e.4xlarge", 1, 128, 1900),
        Machine("ml.g7e.8xlarge", 1, 256, 1900), Machine("ml.g7e.12xlarge", 2, 512, 3800),
        Machine("ml.g7e.24xlarge", 4, 1024, 7600), Machine("ml.g7e.48xlarge", 8, 2048, 15200),
    )),
    Family("A100-80GB", 80, (Machine("ml.p4de.24xlarge", 8, 1152, 8000),), ("A100", "A100-80")),
    Family(
        "H100", 80, (Machine("ml.p5.4xlarge", 1, 256, 3800), Machine("ml.p5.48xlarge", 8, 2048, 30400)),
        ("H100-80GB",),
    ),
    Family(
        "H200", 141, (Machine("ml.p5en.48xlarge", 8, 2048, 30400), Machine("ml.p5e.48xlarge", 8, 2048, 30400)),
    ),
    Family("B200", 180, (Machine("ml.p6-b200.48xlarge", 8, 2048, 30400),), note=SCARCE),
    Family("B300", 268, (Machine("ml.p6-b300.48xlarge", 8, 4096, 30400),), note=SCARCE),
    Family("T4", 16, (
        Machine("ml.g4dn.xlarge", 1, 16, 125), Machine("ml.g4dn.2xlarge", 1, 32, 225),
        Machine("ml.g4dn.4xlarge", 1, 64, 225), Machine("ml.g4dn.8xlarge", 1, 128, 900),
        Machine("ml.g4dn.16xlarge", 1, 256, 900), Machine("ml.g4dn.12xlarge", 4, 192, 900),
    )),
)  # fmt: skip
"""Cheapest first for an equal number of GPUs (SageMaker training, us-west-2, 2026-09), T4 last: it has no
bfloat16. Sizes as EC2 lists them (2026-08-21), https://docs.aws.amazon.com/ec2/latest/instancetypes/ac.html;
the types are those of botocore 1.44.8 (TrainingInstanceType).

Left out: V100 and older (too old for the pinned torch), GB200 (ARM), Trainium, the g7 family.
"""

BY_NAME = {machine.name: machine for family in FAMILIES for machine in family.machines}


def offers(backend: str, wanted: Resources) -> Iterator[Offer]:
    """The machines that fit, best first: as many GPUs as wanted or the fewest above, then the cheapest.

    Raises CapacityError or UnsupportedError when there is none.
    """
    found = [
        (family, machine)
        for family in _of_model(wanted.gpu)
        for machine in family.machines
        if machine.gpus >= wanted.gpus
    ]
    if not found:
        raise _too_many(wanted)
    roomy = [(family, machine) for family, machine in found if machine.nvme_gb >= _gb(wanted.disk_gib)]
    if not roomy:
        raise _no_disk([machine for _, machine in found], wanted)
    # Stable: families stay in the table's order, and so do the machines of one.
    for family, machine in sorted(roomy, key=lambda pair: (pair[1].gpus, _is_tight(*pair))):
        yield Offer(
            backend=backend,
            instance_type=machine.name,
            region=wanted.region,
            gpu=family.gpu,
            gpus=machine.gpus,
            nodes=wanted.nodes,
            gpu_memory_gib=family.memory_gib,
            spot=wanted.spot,
            note=_note(family, machine, wanted),
        )


def types_of(resources: Mapping[str, Any]) -> list[str]:
    """Every instance type of the request, in the order in which they are tried."""
    listed = [*resources.get("InstancePreferences", ()), *resources.get("InstanceGroups", ())]
    return [name for name in (resources.get("InstanceType"), *(one["InstanceType"] for one in listed)) if name]


def in_words(name: str) -> str:
    """`ml.p5.48xlarge` -> `ml.p5.48xlarge (8 x H100 80 GiB)`; an unknown type alone."""
    for family in FAMILIES:
        for machine in family.machines:
            if machine.name == name:
                return f"{name} ({machine.gpus} x {family.gpu} {family.memory_gib:g} GiB)"
    return name


def fewest_gpus(offer: Offer, resources: Resources) -> int:
    """GPUs of the smallest machine that the job may get; 0 where one of them is not known here."""
    return min([offer.gpus, *(BY_NAME[name].gpus if name in BY_NAME else 0 for name in resources.fallback)])


def _is_tight(family: Family, machine: Machine) -> bool:
    """Weights pass through the host's memory on their way to the GPUs."""
    return machine.host_gib < family.memory_gib * machine.gpus


def _of_model(gpu: str | None) -> list[Family]:
    return list(FAMILIES) if gpu is None else of_model("sagemaker", gpu, FAMILIES)


def _gb(gib: int | None) -> float:
    return (gib or 0) * 2**30 / 10**9


def _too_many(wanted: Resources) -> CapacityError:
    most = max(machine.gpus for family in _of_model(wanted.gpu) for machine in family.machines)
    return CapacityError(
        f"resources.gpus: no machine has {wanted.gpus} {wanted.gpu or 'GPUs'}; the largest has {most}",
        f"--set resources.gpus={most}, and resources.nodes for more machines",
    )


def _no_disk(machines: list[Machine], wanted: Resources) -> UnsupportedError:
    largest = max(machines, key=lambda machine: machine.nvme_gb)
    gib = int(largest.nvme_gb * 10**9 / 2**30)
    return UnsupportedError(
        f"resources.disk_gib: these machines have the NVMe disk that comes with them and no other; the largest, "
        f"of {largest.name}, has {gib} GiB",
        f"--set resources.disk_gib={gib}, or choose another resources.gpu",
    )


def _note(family: Family, machine: Machine, wanted: Resources) -> str | None:
    if machine.gpus > wanted.gpus:
        return (
            f"the smallest machine with {wanted.gpus} {family.gpu} has {machine.gpus}: "
            f"all {machine.gpus} are used and paid"
        )
    if _is_tight(family, machine):
        return f"{machine.host_gib} GiB of host memory are less than the GPU's own {family.memory_gib:g}"
    return family.note
