"""Where this user's record and jobs are kept, and where what can be made again is cached."""

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


def cache() -> Path:
    """LAUNCH_CACHE_DIR, or the platform's cache folder: training environments, converted models."""
    if chosen := os.environ.get("LAUNCH_CACHE_DIR"):
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path(APP, appauthor=False)
