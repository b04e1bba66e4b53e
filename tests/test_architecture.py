"""The architecture is a test: who may import whom, and what the pure parts must never touch.

The rules are the tables at the top; docs/architecture.md says why each is there. Imports are read from the syntax tree,
so an import inside a function or under ``TYPE_CHECKING`` counts as well, as a *late* one: an arrow that is drawn late,
or that only a type checker sees, is still an arrow.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vxnet"

DO = {"model", "core", "host", "cluster"}
MAY_IMPORT: dict[str, set[str]] = {
    "model": set(),
    "core": {"model"},
    "host": {"model"},
    "cluster": {"model", "core"},
    "daemon": DO,
    "doctor": DO,
    "lab": DO,
    "tools": DO,
    "cli": {"model", "cluster.archive", "cluster.client", "cluster.terminal"},
}
# Inside a command's function only, so that `vxnet ps` does not pay for what `vxnet daemon` needs.
MAY_IMPORT_LATE: dict[str, set[str]] = {"cli": {"daemon", "doctor", "lab", "tools"}}

PURE = ("model", "core")
IMPURE = {"asyncio", "socket", "time", "random", "secrets", "os", "threading", "subprocess", "logging", "pyroute2"}
# The same by the back door: (attribute called, why).
IMPURE_CALLS = {
    "now": "a clock",
    "today": "a clock",
    "utcnow": "a clock",
    "urandom": "entropy",
    "uuid1": "entropy",
    "uuid4": "entropy",
}

# Libraries that have a home, by top-level name.
HOME: dict[str, set[str]] = {
    "pyroute2": {"host"},
    "cffi": {"host"},
    "sqlite3": {"cluster"},
    "aiohttp": {"cluster", "daemon"},
    "click": {"cli"},
    "scapy": {"tools"},  # GPL-2.0-only: a debugging tool beside vxnet, never a part of the daemon
}
NOT_IN_CLI = ("pyroute2", "aiohttp", "cryptography", "asyncio", "rich", "structlog", "scapy", "vxnet.daemon")

# Modules of more than 500 lines, each with its reason.
LONG: dict[str, str] = {}


class Import(NamedTuple):
    path: Path
    line: int
    module: str
    late: bool

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.module}"


def sources(*parts: str) -> list[Path]:
    folders = [PACKAGE / part for part in parts] if parts else [PACKAGE]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@functools.cache
def imports_of(path: Path) -> tuple[Import, ...]:
    def walk(node: ast.AST, late: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name, late)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                # `from vxnet.core import allocate` means the module, if there is one of that name.
                name = f"{node.module}.{alias.name}"
                inside = ROOT.joinpath(*name.split("."))
                is_module = inside.with_suffix(".py").exists() or inside.is_dir() or name.endswith("._syscalls")
                yield Import(path, node.lineno, name if is_module else str(node.module), late)
        late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or for_types_only(node)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, late)

    return tuple(walk(tree_of(path), False))


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_allowed(module: str, allowed: set[str]) -> bool:
    inside = module.removeprefix("vxnet.")
    return any(inside == name or inside.startswith(name + ".") for name in allowed)


def test_every_part_is_known() -> None:
    found = {part_of(path) for path in sources()} - {"__init__", "__main__"}
    assert found <= set(MAY_IMPORT), f"no rule says what {sorted(found - set(MAY_IMPORT))} may import"


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_follow_the_arrows(part: str) -> None:
    wrong = []
    for path in sources(part):
        for found in imports_of(path):
            if not found.module.startswith("vxnet.") or is_allowed(found.module, {part}):
                continue
            allowed = MAY_IMPORT[part] | (MAY_IMPORT_LATE.get(part, set()) if found.late else set())
            if not is_allowed(found.module, allowed):
                wrong.append(str(found))
    late = f", inside functions also {sorted(MAY_IMPORT_LATE[part])}" if part in MAY_IMPORT_LATE else ""
    assert not wrong, f"{part} may import {sorted(MAY_IMPORT[part]) or 'nothing of vxnet'}{late}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("part", PURE)
def test_pure_parts_have_no_clock_socket_or_randomness(part: str) -> None:
    wrong = []
    for path in sources(part):
        wrong += [str(found) for found in imports_of(path) if found.module.split(".")[0] in IMPURE]
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in IMPURE_CALLS:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {ast.unparse(node.func)}()")
    assert not wrong, f"{part} decides, it does not touch: `now`, entropy and bytes come in as arguments\n" + "\n".join(
        wrong
    )


@pytest.mark.parametrize("library", HOME)
def test_libraries_stay_at_home(library: str) -> None:
    wrong = [
        str(found)
        for path in sources()
        if part_of(path) not in HOME[library]
        for found in imports_of(path)
        if found.module.split(".")[0] == library
    ]
    assert not wrong, f"only {sorted(HOME[library])} may import {library}:\n" + "\n".join(wrong)


def test_dependencies_are_what_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # What the debugging tools use is asked for when one is called.
    declared = project["dependencies"] + project["optional-dependencies"]["debug"]
    names = {re.split(r"[<>=]", line)[0] for line in declared}
    imported = {found.module.split(".")[0] for path in sources() for found in imports_of(path)}
    imported -= {*sys.stdlib_module_names, "vxnet"}
    # Nobody imports cffi at run time but the module that it built.
    assert names - {"cffi"} == imported, f"declared {sorted(names)}, imported {sorted(imported)}"


def test_only_host_calls_the_c_module() -> None:
    wrong = [
        str(found)
        for path in sources()
        if part_of(path) != "host"
        for found in imports_of(path)
        if found.module == "vxnet.host._syscalls"
    ]
    assert not wrong, "setns and mount are host's; others ask host.netns:\n" + "\n".join(wrong)


IMPORT_CLI = """
import sys, time
started = time.process_time()
import vxnet.cli
print(time.process_time() - started, *sys.modules)
"""


def test_importing_the_command_line_is_cheap() -> None:
    """``vxnet`` starts in under 0.1 s: the best of five imports, in CPU time, as the machine may be busy."""
    best = float("inf")
    for _ in range(5):
        run = subprocess.run([sys.executable, "-c", IMPORT_CLI], capture_output=True, text=True, check=True, cwd=ROOT)
        seconds, *loaded = run.stdout.split()
        best = min(best, float(seconds))
    heavy = sorted(set(NOT_IN_CLI) & set(loaded))
    assert not heavy, f"importing vxnet.cli brings in {heavy}; import them inside the command's function"
    assert best < 0.1, f"importing vxnet.cli takes {best:.3f} s of CPU"


def test_long_modules_have_their_reason() -> None:
    c_sources = [*ROOT.glob("csrc/**/*.c"), *ROOT.glob("csrc/**/*.h")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in [*sources(), *c_sources]}
    long = {path for path, lines in lengths.items() if lines > 500}
    assert long == set(LONG), f"over 500 lines: {sorted(long)}; with a reason in LONG: {sorted(LONG)}"


def test_the_reading_order_lists_what_there_is() -> None:
    """The lines ``- `core/swim.py` …`` under *Reading order* in docs/architecture.md are the files that there are."""
    text = (ROOT / "docs/architecture.md").read_text()
    section = text.split("\n## Reading order\n")[1].split("\n## ")[0]
    entries = re.findall(r"^- ((?:`[\w/]+\.(?:py|c|h)`(?:, )?)+)", section, re.MULTILINE)
    listed = [name for entry in entries for name in re.findall(r"`(.+?)`", entry)]
    assert len(listed) == len(set(listed)), "a file is listed twice"
    files = {str(path.relative_to(PACKAGE)) for path in sources() if path.name != "__init__.py"}
    # A package's __init__ is a line of its own only where it holds code and not just the folder's word.
    for path in PACKAGE.rglob("__init__.py"):
        if len(tree_of(path).body) > 1 and path.parent != PACKAGE:
            files.add(str(path.relative_to(PACKAGE)))
    files |= {str(path.relative_to(ROOT)) for pattern in ("csrc/**/*.c", "csrc/**/*.h") for path in ROOT.glob(pattern)}
    assert set(listed) == files, (
        f"in docs/architecture.md and gone: {sorted(set(listed) - files)}; not in it: {sorted(files - set(listed))}"
    )
