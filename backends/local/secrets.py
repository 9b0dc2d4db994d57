"""Secrets of local jobs: from the environment, else from the platform's keyring."""

from __future__ import annotations

import os
from collections.abc import Iterable

from launcher.errors import BackendError, BackendNotInstalledError, CredentialsError

SERVICE = "finelaunch"


def secret_values(names: Iterable[str]) -> dict[str, str]:
    """Values for the child's environment alone. Raises CredentialsError naming the one that is nowhere."""
    found = {}
    for name in names:
        value = os.environ.get(name) or _from_keyring(name)
        if not value:
            raise CredentialsError(
                f"secrets: {name} is neither in the environment nor in the keyring",
                f"export {name}=...  or: launch secrets put {name} --backend local",
            )
        found[name] = value
    return found


def keep(name: str, value: str) -> str:
    """Put a value into the keyring; where it is kept, in words."""
    try:
        import keyring
        import keyring.errors
    except ModuleNotFoundError as exc:
        raise BackendNotInstalledError(
            "this machine's keyring needs the package keyring", "pip install 'finelaunch[keyring]'"
        ) from exc
    try:
        keyring.set_password(SERVICE, name, value)
    except keyring.errors.KeyringError as exc:
        raise BackendError(f"the keyring does not take {name}: {exc}", f"export {name}=... instead") from exc
    return f"this machine's keyring, service {SERVICE}"


def _from_keyring(name: str) -> str | None:
    try:
        import keyring
        import keyring.errors
    except ModuleNotFoundError:
        return None
    try:
        found = keyring.get_password(SERVICE, name)
    except keyring.errors.KeyringError:
        return None
    return str(found) if found else None
