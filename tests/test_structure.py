"""The house keeps its shape: who may import whom, what the core may not touch, what every test must say."""

from __future__ import annotations

import ast
import asyncio
import re
from pathlib import Path

import pytest

from prelude_proxy import downstream, upstream

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "prelude_proxy"
CORE_MAY_IMPORT = {
    "__future__", "bisect", "collections", "dataclasses", "enum", "fnmatch", "functools", "hashlib", "heapq",
    "itertools", "math", "operator", "re", "struct", "types", "typing", "unicodedata", "zlib", "array",
    "librt", "mypy_extensions", "numpy", "orjson", "prelude_proxy",
}  # fmt: skip


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").rglob("*.py")), ids=lambda path: path.name)
def test_the_core_touches_no_clock_no_socket_and_no_shell(path):
    """Everything in core/ can be tested in microseconds and replayed in virtual time."""
    for name in imports(path):
        assert name.partition(".")[0] in CORE_MAY_IMPORT, f"{path.name} imports {name}"
        if name.startswith("prelude_proxy"):
            assert name.startswith(("prelude_proxy.core", "prelude_proxy.errors")), f"{path.name} imports {name}"


def test_the_serving_path_does_not_load_xgboost():
    """Importing it costs over a second and 200 MB; only training does."""
    for path in PACKAGE.rglob("*.py"):
        if "training" not in path.parts and "commands" not in path.parts:
            assert not any(name.partition(".")[0] in {"xgboost", "sklearn", "scipy"} for name in imports(path)), path


def test_only_the_composition_root_builds_the_application():
    """No module but app.py and the command line imports app.py."""
    for path in PACKAGE.rglob("*.py"):
        if path.name not in {"app.py", "cli.py"} and "commands" not in path.parts:
            assert "prelude_proxy.app" not in imports(path), path


@pytest.mark.parametrize("module", [downstream, upstream])
def test_connections_are_protocols_in_all_but_name(module):
    """A compiled class has no interpreted base: whatever asyncio may call on a protocol must be there without it."""
    called = {name for name in dir(asyncio.Protocol) if not name.startswith("_")}
    assert called <= set(dir(module._Connection))


def test_every_test_states_the_behaviour_it_checks():
    """One sentence a test, so that a failing name reads as a broken promise."""
    silent = [
        f"{path.relative_to(ROOT)}::{node.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert not silent


def test_every_lint_exception_has_its_reason():
    """`noqa` and `type: ignore` are followed by a why."""
    exception = re.compile(r"# (?:noqa: [A-Z0-9, ]+|type: ignore\[[^\]]+\])(.*)$", re.MULTILINE)
    bare = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for found in exception.finditer(path.read_text("utf-8"))
        if len(found[1].split()) < 2
    ]
    assert not bare


def test_the_image_is_built_from_files_that_are_let_in():
    """`.dockerignore` shuts out all but a list; a file that is copied and not on the list ends the build."""
    lines = [line.split() for line in (ROOT / "Dockerfile").read_text().splitlines()]
    copied = [Path(name) for words in lines if words[:1] == ["COPY"] and "=" not in words[1] for name in words[1:-1]]
    let_in = {
        Path(line.removeprefix("!")) for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")
    }
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert name in let_in
