"""docs/backends.md: every field of the job file on every backend, as the rendered requests show it.

`python -m tests.golden.table` writes it; tests/unit/test_every_field.py compares.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from backends import registry
from tests.golden.fields import FIELDS, expression

TARGET = Path(__file__).resolve().parents[2] / "docs" / "backends.md"
HEAD = """# What every backend makes of every field

Made by `python -m tests.golden.table` from the requests themselves: each field is changed, the request is
rendered, and what moved is listed. `job.json` is the resolved job inside the bundle, which the training process
reads. A path is a place in the vendor's request. `refused` is what `launch plan` says instead of dropping it.
The whole requests stand in `tests/golden/`.

`backend` chooses the column. `local` runs the same bundle as a process: resources that it can't offer are
refused by name.

What of `skypilot` no test shows, as no real cloud takes part: SkyPilot getting a cloud's machine and mounting a
bucket there with goofys or gcsfuse, spot machines, images, disks, what a cloud bills. Autostop was seen to take
a cluster down on Slurm, on no cloud. What is shown: on a real Slurm cluster (`tests/emulators/slurm`) jobs of
one and two nodes run, fail, are cancelled and fetched, a managed job goes on when its allocation is killed, and
no machine stays. With a bucket as store the contract's jobs train for real on an S3 bucket of moto's that
rclone mounts through FUSE, started by a stand-in for SkyPilot (`tests/emulators/mounted_worker.py`); a Google
bucket is read and written on gcp-storage-emulator, the node's files mirrored into it.

What of `azureml` differs from what Azure's own tools would make: the bundle is a folder of the datastore, named
by its hash and sent once, and no data asset: the last job that needs it takes it away (`launch release`), and a
version of a data asset can never be deleted. The image is built from the pins on Azure's newest base, which is
named by its tag, since Azure's PyTorch images have Python 3.10; `resources.image` names another, best by
digest.
"""


def table() -> str:
    """The page."""
    names = [name for name in registry.BUILTIN if name != "local"]
    lines = [f"| field | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    with TemporaryDirectory() as place:
        for field in FIELDS:
            cells = [_cell(expression(name, field, Path(place))) for name in names]
            lines.append(f"| `{field}` | {' | '.join(cells)} |")
    return HEAD + "\n" + "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Long lists of paths are cut to what a reader takes in."""
    if text.startswith(("refused", "job.json", "its only")) or " " in text.split(", ")[0]:
        return text.replace("|", "\\|")
    paths = text.split(", ")
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(f"`{p}`" for p in paths[:3]) + more


if __name__ == "__main__":
    TARGET.write_text(table(), encoding="utf-8")
