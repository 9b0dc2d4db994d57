"""AWS's own training image, and the account that publishes it in each region.

Read on 2026-11-25 from image_uri_config/pytorch-amzn2023.json of sagemaker-core 2.27.0;
tools/sagemaker_images.py compares the table with a newer one.
"""

from __future__ import annotations

import difflib
import re
from datetime import date

from backends.base import PLACEHOLDER
from backends.container import Image
from launcher.errors import UnsupportedError

IMAGE = Image(
    ref="{account}.dkr.ecr.{region}.{domain}/pytorch:2.13-cu133-amzn2023-sagemaker",
    python=(3, 12),
    torch=(2, 13),
    as_of=date(2026, 11, 25),
    url="https://github.com/aws/deep-learning-containers",
)
"""Released 2026-07-20 with the pinned torch, boto3 and s3fs; in every region of the table. Its own entrypoint,
which ours takes the place of, only starts AWS's training toolkit.
"""

USUAL_ACCOUNT = "763104351884"
OTHER_ACCOUNTS = {
    "af-south-1": "626614931356",
    "ap-east-1": "871362719292",
    "ap-east-2": "975050140332",
    "ap-northeast-3": "364406365360",
    "ap-south-2": "772153158452",
    "ap-southeast-3": "907027046896",
    "ap-southeast-4": "457447274322",
    "ap-southeast-5": "550225433462",
    "ap-southeast-6": "633930458069",
    "ap-southeast-7": "590183813437",
    "ca-west-1": "204538143572",
    "cn-north-1": "727897471807",
    "cn-northwest-1": "727897471807",
    "eu-central-2": "380420809688",
    "eu-isoe-west-1": "371248457586",
    "eu-south-1": "692866216735",
    "eu-south-2": "503227376785",
    "eusc-de-east-1": "204133271717",
    "il-central-1": "780543022126",
    "me-central-1": "914824155844",
    "me-south-1": "217643126080",
    "me-west-1": "124382933778",
    "mx-central-1": "637423239942",
    "us-gov-east-1": "446045086412",
    "us-gov-west-1": "442386744353",
    "us-iso-east-1": "886529160074",
    "us-isob-east-1": "094389454867",
    "us-isof-east-1": "303241398832",
    "us-isof-south-1": "454834333376",
}
USUAL_REGIONS = (
    "ap-northeast-1", "ap-northeast-2", "ap-south-1", "ap-southeast-1", "ap-southeast-2", "ca-central-1",
    "eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3", "sa-east-1",
    "us-east-1", "us-east-2", "us-west-1", "us-west-2",
)  # fmt: skip
ACCOUNTS = {**dict.fromkeys(USUAL_REGIONS, USUAL_ACCOUNT), **OTHER_ACCOUNTS}

USUAL_DOMAIN = "amazonaws.com"
DOMAINS = {
    "cn-": "amazonaws.com.cn",
    "eu-isoe-": "cloud.adc-e.uk",
    "eusc-": "amazonaws.eu",
    "us-iso-": "c2s.ic.gov",
    "us-isob-": "sc2s.sgov.gov",
    "us-isof-": "csp.hci.ic.gov",
}
"""Beginning of a region's name -> the domain of its services."""

ECR = re.compile(r"\d{12}\.dkr[.-]ecr[.-][^/]+/.+|public\.ecr\.aws/.+")
"""Registries that SageMaker pulls from by itself; every other one it reaches through the job's VPC only.
https://docs.aws.amazon.com/sagemaker/latest/dg/docker-containers-adapt-your-own-private-registry.html
"""
PARTS = re.compile(
    r"(?P<account>\d{12})\.dkr[.-]ecr[.-](?P<region>[a-z0-9-]+)\.[^/]+/(?P<name>[^@:]+)"
    r"(?::(?P<tag>[\w.-]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
"""An image in an account's registry."""


def reference(region: str, field: str) -> str:
    """The image in `region`, which may be a placeholder. Raises UnsupportedError naming `field`."""
    if PLACEHOLDER.fullmatch(region):
        return IMAGE.ref.format(account=USUAL_ACCOUNT, region=region, domain=USUAL_DOMAIN)
    if region not in ACCOUNTS:
        close = difflib.get_close_matches(region, ACCOUNTS, n=1)
        guess = f"did you mean {close[0]}? else " if close else ""
        raise UnsupportedError(
            f"{field}: AWS publishes no training image in {region!r}",
            f"{guess}name an image of your own: --set resources.image=...",
        )
    return IMAGE.ref.format(account=ACCOUNTS[region], region=region, domain=domain(region))


def domain(region: str) -> str:
    """The domain of AWS's services in a region."""
    return next((name for start, name in DOMAINS.items() if region.startswith(start)), USUAL_DOMAIN)
