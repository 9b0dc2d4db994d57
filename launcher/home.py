"""Where this user's record, jobs and caches are kept."""

from __future__ import annotations

import os
from pathlib import Path

APP = "finelaunch"


def home() -> Path:
    """LAUNCH_HOME, or the platform's folder for user data. Not created here."""
    if chosen := os.environ.get("LAUNCH_HOME"):
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path(APP, appauthor=False)
