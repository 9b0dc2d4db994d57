"""Names to backends: built-in ones, strangers' plugins, and names that are nobody's."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import registry
from backends.base import JobRef
from backends.local import LocalBackend
from backends.registry import BUILTIN, Builtin
from launcher.errors import BackendError, BackendNotFoundError, BackendNotInstalledError, ConfigError


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed distribution with three backends: one fine, one that shadows, one that can't be imported."""
    (tmp_path / "stranger.py").write_text(
        "class Mine:\n    name = 'mine'\n    def __init__(self, home):\n        self.home = home\n"
    )
    (tmp_path / "broken_plugin.py").write_text("import no_such_sdk\n")
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[launcher.backends]\nmine = stranger:Mine\nlocal = stranger:Mine\n"
        "broken = broken_plugin:Any\nempty = stranger:Absent\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("stranger", None)


def test_every_built_in_name_makes_a_backend_of_that_name(tmp_path: Path) -> None:
    for name in BUILTIN:
        assert registry.create(name, tmp_path).name == name


def test_a_plugin_is_found_and_gets_the_home(plugins: Path) -> None:
    backend = registry.create("mine", plugins / "home")
    assert (backend.name, backend.home) == ("mine", plugins / "home")  # type: ignore[attr-defined]
    assert registry.names() == [*BUILTIN, "broken", "empty", "mine"]


def test_a_plugin_cannot_shadow_a_built_in(plugins: Path) -> None:
    assert type(registry.create("local", plugins)) is LocalBackend


@pytest.mark.parametrize("name", ["broken", "empty"])
def test_a_plugin_that_cannot_be_loaded_is_named(name: str, plugins: Path) -> None:
    with pytest.raises(BackendError, match=f"backend {name}") as refusal:
        registry.create(name, plugins)
    assert refusal.value.hint


def test_an_unknown_name_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(BackendNotFoundError, match="'locla'") as refusal:
        registry.create("locla", tmp_path)
    assert "did you mean local?" in (refusal.value.hint or "")


def test_a_missing_extra_is_named_and_any_other_missing_module_is_a_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_sdk.py").write_text("import no_such_sdk.client\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(BUILTIN, "cloud", Builtin("needs_sdk:Any", "a cloud", "cloud", "no_such_sdk"))
    with pytest.raises(BackendNotInstalledError) as refusal:
        registry.create("cloud", tmp_path)
    assert "finelaunch[cloud]" in (refusal.value.hint or "")
    monkeypatch.setitem(BUILTIN, "cloud", Builtin("needs_sdk:Any", "a cloud", "cloud", "other_sdk"))
    with pytest.raises(ModuleNotFoundError):
        registry.create("cloud", tmp_path)


def test_plugins_are_not_looked_for_when_the_name_is_built_in() -> None:
    script = (
        "from pathlib import Path; from backends import registry\n"
        "import importlib.metadata as m\n"
        "m.entry_points = lambda **_: 1 / 0\n"
        "registry.create('local', Path('x'))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("text", ["local://localhost/a-1", "azure_ml://West-Europe/a?b#c", "s-m://x/a/b"])
def test_references_print_as_they_parse(text: str) -> None:
    assert str(JobRef.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "demo-1", "local://", "local://host", "://host/id", "local://ho st/id", "x://[/"]
)
def test_other_text_is_no_reference(text: str) -> None:
    with pytest.raises(ConfigError, match="not a job reference"):
        JobRef.parse(text)
