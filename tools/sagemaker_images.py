"""Compare backends/sagemaker/images.py with the table in AWS's own package, and print what it should hold.

    pip install --no-deps --target FOLDER sagemaker-core
    python tools/sagemaker_images.py FOLDER

The package is unpacked and never imported: with what it needs it is 1 GB. Exit status 1 when something differs.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from backends.sagemaker import images  # noqa: E402

CONFIG = "sagemaker/core/image_uri_config/pytorch-amzn2023.json"
DOMAINS = "sagemaker/core/common_utils.py"


def main(folder: Path) -> int:
    training = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["training"]
    wanted = f"{images.IMAGE.torch[0]}.{images.IMAGE.torch[1]}"
    published = training["versions"][wanted]
    differences = [
        *_of_reference(published),
        *_of_mapping("ACCOUNTS", images.ACCOUNTS, published["registries"]),
        *_of_mapping("domain", {r: images.domain(r) for r in images.ACCOUNTS}, _domains(folder, published)),
    ]
    print(f"{published['repository']}:{_tag(published)} in {len(published['registries'])} regions")
    for config in (c for v, c in training["versions"].items() if _number(v) > _number(wanted)):
        print(f"newer: {config['repository']}:{_tag(config)} in {len(config['registries'])} regions")
    print("OTHER_ACCOUNTS = {")
    for region, account in sorted(published["registries"].items()):
        if account != images.USUAL_ACCOUNT:
            print(f'    "{region}": "{account}",')
    print("}")
    for line in differences:
        print(f"DIFFERS {line}")
    return 1 if differences else 0


def _of_reference(published: Mapping[str, Any]) -> Iterator[str]:
    ours = images.IMAGE.ref.rpartition("/")[2]
    theirs = f"{published['repository']}:{_tag(published)}"
    if ours != theirs:
        yield f"IMAGE: {ours}, and AWS has {theirs}"


def _of_mapping(name: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[str]:
    for key in sorted({*ours, *theirs}):
        if ours.get(key) != theirs.get(key):
            yield f"{name}: {key} is {ours.get(key)}, and AWS has {theirs.get(key)}"


def _domains(folder: Path, published: Mapping[str, Any]) -> dict[str, str]:
    """Region -> domain, as the package's ALTERNATE_DOMAINS has it."""
    tree = ast.parse((folder / DOMAINS).read_text(encoding="utf-8"))
    found = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ALTERNATE_DOMAINS"
    )
    return {region: found.get(region, images.USUAL_DOMAIN) for region in published["registries"]}


def _tag(config: Mapping[str, Any]) -> str:
    return f"{config['tag_prefix']}-{config['container_version']['gpu']}"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
