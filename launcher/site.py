"""Account facts: what `launch setup` wrote once, and what the job file says for itself. Never a secret."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from backends.base import Fact, Site
from launcher.errors import ConfigError
from launcher.home import APP
from launcher.spec import JobSpec
from train_entry.failure import write_atomic

FILE = "sites.yaml"


def sites_file() -> Path:
    """LAUNCH_CONFIG_DIR/sites.yaml, or in the platform's configuration folder."""
    if chosen := os.environ.get("LAUNCH_CONFIG_DIR"):
        return Path(chosen).expanduser().absolute() / FILE
    from platformdirs import user_config_path

    return user_config_path(APP, appauthor=False) / FILE


def load_site(backend: str, facts: Sequence[Fact], job: JobSpec | None = None) -> Site:
    """The facts of one backend: the job file's `site`, else those of launch setup. Raises ConfigError."""
    known = dict(_read().get(backend, {}))
    where = {name: f"{sites_file()}: {backend}.{name}" for name in known}
    for name, value in (job.site.get(backend, {}) if job else {}).items():
        known[name] = value
        where[name] = f"site.{backend}.{name}"
    return Site(backend=backend, facts=check_facts(backend, facts, known, where), owner=current_user())


def current_user() -> str | None:
    """LAUNCH_OWNER, or the name under which this user is logged in: the owner of jobs sent from here."""
    try:
        return os.environ.get("LAUNCH_OWNER") or getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in some containers
        return None


def sent_by_another(owner: str | None) -> bool:
    """Is this known to be the owner of somebody else's job?"""
    return owner not in (None, current_user())


def how_to_set(backend: str, facts: Iterable[str]) -> str:
    """What to type to tell `facts`."""
    return " ".join([f"launch setup {backend}", *(f"--{fact.replace('_', '-')} ..." for fact in facts)])


def save_site(backend: str, values: Mapping[str, str]) -> Path:
    """Write the facts of one backend beside those of the others; whole or not at all. The file's path."""
    path = sites_file()
    everything = {**_read(), backend: dict(values)}
    write_atomic(path, yaml.safe_dump(everything, sort_keys=True, allow_unicode=True).encode())
    return path


def check_facts(
    backend: str, facts: Sequence[Fact], values: Mapping[str, str], where: Mapping[str, str]
) -> dict[str, str | None]:
    """Every fact with its value or None. Raises ConfigError listing those that are unknown or malformed."""
    by_name = {fact.name: fact for fact in facts}
    problems = []
    for name, value in values.items():
        if name not in by_name:
            problems.append(f"{where[name]}: unknown; there are: {', '.join(by_name) or 'none'}")
        elif not re.fullmatch(by_name[name].pattern, value):
            problems.append(f"{where[name]}: {value!r} has not the form of {by_name[name].example}")
    if problems:
        raise ConfigError(
            f"account facts of backend {backend} can't be used",
            f"launch setup {backend} --list",
            problems=problems,
        )
    return {fact.name: values.get(fact.name) for fact in facts}


def _read() -> dict[str, dict[str, str]]:
    path = sites_file()
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise ConfigError(f"{path} can't be read: {exc}", "correct it, or remove it and run launch setup") from exc
    if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        raise ConfigError(f"{path}: expected backend names with their facts", "remove it and run launch setup")
    return {str(b): {str(k): str(v) for k, v in facts.items()} for b, facts in found.items()}
