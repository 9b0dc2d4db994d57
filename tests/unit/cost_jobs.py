"""A job, its counted rows, offers and prices that the tests of the estimate share; nothing depends on the day."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from cost.estimate import Estimator
from cost.offers import Offer
from cost.prices import Prices, Quote, Row, TokenPrice
from cost.shapes import known_shape
from cost.tokens import TokenCount
from cost.work import Work, work_of
from launcher.spec import JobSpec

TODAY = date(2026, 11, 25)
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def job(**changes: Any) -> JobSpec:
    """LoRA of Llama 3.1 8B, 3 epochs, 16 rows a step; `changes` replace whole sections."""
    spec: dict[str, Any] = {
        "name": "demo", "model": LLAMA, "task": "generation", "data": {"train": "rows.jsonl"}, **changes,
    }  # fmt: skip
    return JobSpec.model_validate(spec)


def counted(
    lengths: Sequence[int] = (200, 400, 600), rows: int = 3000, answer: int = 50, error: float = 0.0
) -> TokenCount:
    """Rows of these lengths in equal numbers; a tenth as many are held out."""
    mean = sum(lengths) / len(lengths)
    held_out = TokenCount(
        lengths=tuple(lengths), answers=(answer,) * len(lengths), rows=rows // 10, total=round(mean * rows / 10)
    )
    return TokenCount(
        lengths=tuple(lengths), answers=(answer,) * len(lengths), rows=rows, total=round(mean * rows), error=error,
        evaluation=held_out,
    )  # fmt: skip


def work(of: JobSpec | None = None, **rows: Any) -> Work:
    of = of or job()
    return work_of(of, known_shape(of.model.id), counted(**rows))


def offer(gpu: str = "A100-80GB", backend: str = "vertex", **fields: Any) -> Offer:
    given: dict[str, Any] = {"instance_type": KINDS.get((backend, gpu), "machine"), "gpus": 1}
    return Offer(backend=backend, gpu=gpu, **{**given, **fields})


def quote(hourly: str, as_of: date = date(2026, 8, 1)) -> Quote:
    return Quote(hourly=Decimal(hourly), as_of=as_of, url="https://example.com/prices", origin="bundled")


def row(provider: str, kind: str, gpu: str, hourly: str, spot: str | None = None, gpus: int = 1) -> Row:
    return Row(
        provider=provider, instance_type=kind, region="us-1", gpu=gpu, gpus=gpus, on_demand=quote(hourly),
        spot=quote(spot) if spot else None,
    )  # fmt: skip


PRICES = Prices(
    rows=(
        row("sagemaker", "ml.g4dn.2xlarge", "T4", "0.94"),
        row("sagemaker", "ml.g6.2xlarge", "L4", "1.222"),
        row("sagemaker", "ml.g6e.2xlarge", "L40S", "2.80"),
        row("sagemaker", "ml.p4d.24xlarge", "A100", "25.251", gpus=8),
        row("gcp", "g2-standard-12", "L4", "1.00", spot="0.40"),
        row("gcp", "a2-ultragpu-1g", "A100-80GB", "5.00", spot="2.00"),
        row("azure", "Standard_NC24ads_A100_v4", "A100-80GB", "3.673"),
        row("lambda", "gpu_1x_a10", "A10", "1.29"),
        row("nebius", "gpu-h200", "H200", "3.50"),
    ),
    tokens=(
        TokenPrice(
            provider="together", from_parameters_b=0, to_parameters_b=17, low=Decimal("0.48"),
            high=Decimal("1.35"), as_of=date(2026, 5, 8), url="https://example.com/tokens",
        ),
    ),
)  # fmt: skip
KINDS = {
    ("sagemaker", "T4"): "ml.g4dn.2xlarge", ("sagemaker", "L4"): "ml.g6.2xlarge",
    ("sagemaker", "L40S"): "ml.g6e.2xlarge", ("sagemaker", "A100"): "ml.p4d.24xlarge",
    ("sagemaker", "H200"): "ml.p5en.48xlarge", ("vertex", "L4"): "g2-standard-12",
    ("vertex", "A100-80GB"): "a2-ultragpu-1g", ("azureml", "A100-80GB"): "Standard_NC24ads_A100_v4",
    ("skypilot", "A10"): "A10:1", ("skypilot", "H200"): "H200:1",
}  # fmt: skip


def estimator(of: JobSpec | None = None, **rows: Any) -> Estimator:
    return Estimator(work=work(of, **rows), prices=PRICES)


def offers(spot: bool = False) -> list[Offer]:
    """One of everything: priced and not, fitting and not, whole machines, this machine without a GPU."""
    found = [offer(gpu, backend, spot=spot) for backend, gpu in KINDS]
    found = [one if one.gpu != "A100" else offer("A100", "sagemaker", gpus=8, spot=spot) for one in found]
    return [*found, Offer(backend="local", instance_type="CPU, 8 cores, 32 GiB")]
