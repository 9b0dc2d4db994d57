"""Who sent a job: a random word of this user's home, in the job's `submitted` file.

Only the sender's SkyPilot knows for sure that a job is gone; another machine's may never have heard of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

FILE = "skypilot-sender"


class Sender:
    """The word that is kept under `home`. Making one does no I/O."""

    def __init__(self, home: Path) -> None:
        self._file = home / FILE

    def id(self) -> str:
        """The word; made at the first call. Two that make it at once agree on one."""
        if not self._file.exists():
            self._file.parent.mkdir(parents=True, exist_ok=True)
            own = self._file.with_name(f"{FILE}.{uuid4().hex}")
            own.write_text(uuid4().hex, encoding="utf-8")
            try:
                os.link(own, self._file)
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                own.replace(self._file)
            finally:
                own.unlink(missing_ok=True)
        return self._file.read_text(encoding="utf-8")
