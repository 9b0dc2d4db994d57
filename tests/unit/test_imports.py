"""Who may import whom, read from the source: the rules that keep five packages apart."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("launcher", "backends", "cost", "train_entry", "templates")
TRAINING = {"torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes"}
VENDORS = {"boto3", "botocore", "sagemaker", "google", "azure", "sky", "keyring", "fsspec", "pyarrow"}
FROM_TRAIN_ENTRY = {f"train_entry.{name}" for name in ("config", "events", "failure", "rows")}
COUNTING = {f"train_entry.{name}" for name in ("config", "data", "embedded", "failure", "hub", "rows")}
"""What counts a job's tokens as the trainer makes its rows."""
LOCAL_ONLY = {"backends.local"}
BUCKETS = {
    ("backends.skypilot.buckets", f"backends.{name}")
    for name in ("sagemaker.aws", "sagemaker.storage", "vertex.google", "vertex.storage")
}
"""A bucket is read by what its own vendor's backend reads it with, whoever mounts it."""


@dataclass(frozen=True)
class Import:
    """`module` imports `target`; `inside`: within a function; `typing`: for type checkers only."""

    module: str
    target: str
    inside: bool
    typing: bool

    def __str__(self) -> str:
        return f"{self.module} imports {self.target}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def walk(node: ast.AST, inside: bool = False, typing: bool = False) -> Iterator[tuple[ast.AST, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, inside, typing
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        checked = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        yield from walk(child, inside or function, typing or checked)


def imports_of(path: Path) -> Iterator[Import]:
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node, inside, typing in walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, inside, typing)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield Import(name, whole if is_module(whole) else base, inside, typing)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def under(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
IMPORTS = [found for path in FILES for found in imports_of(path)]


def of(*packages: str) -> list[Import]:
    return [i for i in IMPORTS if under(i.module, *packages)]


def test_the_reader_of_imports_sees_them() -> None:
    seen = {(i.module, i.target) for i in IMPORTS}
    assert ("launcher.client", "backends.registry") in seen
    assert ("launcher.spec", "train_entry.config") in seen
    assert any(i.target == "torch" and not i.inside and i.module == "train_entry.loop" for i in IMPORTS)
    assert any(i.target == "keyring" and i.inside for i in of("backends.local"))


def test_train_entry_imports_none_of_the_others() -> None:
    assert [
        str(i) for i in of("train_entry") if under(i.target, "launcher", "backends", "cost", "templates")
    ] == []


@pytest.mark.parametrize(
    "name", [*sorted(FROM_TRAIN_ENTRY | COUNTING), "train_entry.__main__", "train_entry.checkpoint"]
)
def test_what_must_run_without_torch_reaches_the_standard_library_only(name: str) -> None:
    reached, strange, todo = {name}, [], [name]
    while todo:
        for found in (i for i in IMPORTS if i.module == todo[0] and not i.inside and not i.typing):
            if under(found.target, "train_entry"):
                todo += [found.target] if found.target not in reached else []
                reached.add(found.target)
            elif found.target.split(".")[0] not in sys.stdlib_module_names:
                strange.append(str(found))
        todo.pop(0)
    assert strange == []


def test_launcher_and_backends_use_only_the_shared_modules_of_train_entry() -> None:
    used = {i.target for i in of("launcher", "backends") if under(i.target, "train_entry")}
    assert used <= FROM_TRAIN_ENTRY
    assert {i.target for i in of("cost") if under(i.target, "train_entry")} <= COUNTING


def test_the_launchers_side_never_imports_the_training_libraries() -> None:
    sides = of("launcher", "backends", "cost", "templates")
    assert [str(i) for i in sides if i.target.split(".")[0] in TRAINING] == []


def test_vendors_sdks_are_imported_inside_functions_only() -> None:
    top = [i for i in of("launcher", "backends", "cost") if not i.inside and not i.typing]
    assert [str(i) for i in top if i.target.split(".")[0] in VENDORS] == []


def test_cost_knows_no_backend_and_of_the_launcher_only_spec_and_errors() -> None:
    allowed = ("launcher.spec", "launcher.errors", *COUNTING, "cost")
    strange = [i for i in of("cost") if i.target.split(".")[0] in PACKAGES and not under(i.target, *allowed)]
    assert [str(i) for i in strange] == []


def test_a_backend_knows_neither_another_backend_nor_the_client() -> None:
    allowed = ("launcher.spec", "launcher.errors", "launcher.home", "cost", *FROM_TRAIN_ENTRY)
    common = tuple(
        f"backends.{n}" for n in ("base", "registry", "capabilities", "container", "files", "gpus", "storage")
    )
    for found in of("backends"):
        if found.target.split(".")[0] not in PACKAGES or (found.module, found.target) in BUCKETS:
            continue
        own = ".".join(found.module.split(".")[:2])
        inner = () if own in (*common, "backends") else (own,)
        assert under(found.target, *allowed, *common, *inner), str(found)


def test_the_client_names_no_backend() -> None:
    used = [i for i in of("launcher") if under(i.target, "backends")]
    common = ("backends.base", "backends.container", "backends.registry", *LOCAL_ONLY)
    assert [str(i) for i in used if i.target != "backends" and not under(i.target, *common)] == []
    assert [str(i) for i in of("launcher.client") if under(i.target, *LOCAL_ONLY)] == []


def test_nothing_imports_the_command_line_but_its_commands() -> None:
    users = {i.module for i in IMPORTS if under(i.target, "launcher.cli")}
    assert all(under(user, "launcher.commands") for user in users)


def test_only_the_command_line_imports_commands_and_only_testing_imports_pytest() -> None:
    users = [i for i in IMPORTS if under(i.target, "launcher.commands")]
    assert [str(i) for i in users if not under(i.module, "launcher.cli", "launcher.commands")] == []
    testers = {i.module for i in IMPORTS if under(i.target, "pytest")}
    assert all(under(module, "launcher.testing") for module in testers)


def test_help_imports_click_and_nothing_heavy() -> None:
    script = (
        "import sys\nsys.argv = ['launch', '--help']\nfrom launcher import cli\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'yaml', 'pydantic', 'rich', 'httpx', 'sqlite3', 'psutil', 'tokenizers', 'boto3', 'torch'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "LOADED []"
