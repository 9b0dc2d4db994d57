"""Whose price lists a backend's offers are priced from, and what the backend itself adds to them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

SKYPILOT_CLOUDS = ("aws", "azure", "gcp", "lambda", "nebius", "runpod")
"""The clouds of SkyPilot whose prices are known here. RunPod's community machines are not among them: SkyPilot's
catalogue holds the secure ones (sky/catalog/data_fetchers/fetch_runpod.py of SkyPilot 0.14.1)."""
OWN_CLUSTERS = ("kubernetes", "k8s", "slurm", "ssh")


@dataclass(frozen=True, kw_only=True)
class Market:
    """`fee` is a share of the on-demand price that the backend adds, `fee_name` what it is called.

    `spot_floor`: the backend publishes no spot price; it bills a share of the on-demand price, at least this one.
    """

    providers: tuple[str, ...]
    fee: Decimal = Decimal(0)
    fee_name: str = ""
    spot_floor: Decimal | None = None
    spot_note: str = ""
    flex_floor: Decimal | None = None
    """The same of a flexible start, which no list has: a share of the machine's own on-demand price."""
    flex_note: str = ""


VERTEX = Market(
    providers=("gcp",),
    fee=Decimal("0.15"),
    fee_name="Vertex AI management fee (15 % of on demand)",
    spot_note="the fee is assumed not to fall with spot",
    flex_floor=Decimal("0.4"),
    flex_note="flex-start: no list has its price: unknown, at most the price on demand; a bill of 2025-08 for 8 "
    "H100 was 49 % below it",
)
"""A Vertex machine on demand costs Compute Engine's list price and 15 % more; on spot, flex-start and
reservations the 15 % is still that of the on-demand price (H100: 1.4694826 of 9.79655057 dollars, a bill of
2025-08; for spot the same is what Google documents for predictions). That bill had 4.200761 dollars an hour for an
H100 in flex-start, 0.43 of the list's; 8 of them came to 52.03 with the fee, on demand to 101.54.
https://cloud.google.com/vertex-ai/pricing (2026-10-07)"""

SAGEMAKER = Market(providers=("sagemaker",), spot_floor=Decimal("0.1"))
"""There is no list of spot prices for training: AWS bills fewer seconds at the on-demand rate, "up to 90 %" less.
https://docs.aws.amazon.com/sagemaker/latest/dg/model-managed-spot-training.html (2026-11-23)"""

MARKETS: dict[str, Market] = {
    "sagemaker": SAGEMAKER,
    "vertex": VERTEX,
    "azureml": Market(providers=("azure",)),
    "skypilot": Market(providers=SKYPILOT_CLOUDS),
}
"""Azure ML adds nothing to the price of its virtual machines (assumed: no page of Microsoft's says otherwise).
A provider's own name (aws, lambda, modal, ...) stands for itself."""

REFRESHED_BY = {"sagemaker": "sagemaker", "aws": "ec2", "azure": "azure", "gcp": "google"}
"""Provider -> the source of `launch prices refresh` that reads its list; SkyPilot's catalogue has the others."""


def market(backend: str) -> Market:
    """The market of a backend, or of a provider by its own name."""
    return MARKETS.get(backend) or Market(providers=(backend,))


def refresh_source(provider: str) -> str:
    return REFRESHED_BY.get(provider, "skypilot")
