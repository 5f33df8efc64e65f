"""Who may import whom, and who may speak to the operating system: read from the sources, not from a running program.

  - Inside a package imports are relative and point downwards only, along ENGINE_ORDER or STORE_ORDER; inside
    `limpet.inspection` along INSPECTION_ORDER. A function-level import counts like any other. So the engine can be
    copied into a program under any name and read from the top.
  - The engine imports the standard library and, guarded, its three optional packages; nothing else.
  - Only the modules in OS_MODULES open, read, write, map or lock files.
  - The store uses the names in `limpet.__all__` and nothing behind them; its command also the modules FOR_COMMANDS.
  - The commands print by `limpet.console` and by nothing else.

A new module has to be added to one of the lists; the test that fails says which.
"""

import ast
import builtins
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import limpet

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "engine" / "limpet"
STORE = ROOT / "store" / "limpet_store"

# From the user inwards. A module imports only what stands on a later line, a sub-package (one line) also itself.
ENGINE_ORDER = [
    "__main__",
    "cli",
    "console",
    "__init__",
    "testing",
    "inspection",
    "upgrade",
    "legacy",
    "database",
    "committer",
    "promise",
    "record_writer",
    "checkpoint",
    "opening",
    "backup",
    "head",
    "check",
    "recovery",
    "books",
    "transaction",
    "chain",
    "reader",
    "snapshot",
    "paging",
    "table",
    "room",
    "overlay",
    "codecs",
    "btree",
    "pager",
    "row_cache",
    "node",
    "free_space",
    "log",
    "turn",
    "file",
    "native",
    "format",
    "checksum",
    "errors",
]

# The same for the modules of a sub-package that is large enough to be read in an order.
INSPECTION_ORDER = ["__init__", "inspector", "advice", "census", "page", "tables", "commit", "raw", "results"]

STORE_ORDER = [
    "__main__",
    "cli",
    "openclaw",
    "demo",
    "__init__",
    "aio",
    "store",
    "redb",
    "new_file",
    "retention",
    "transfer",
    "check",
    "migrations",
    "transaction",
    "families",
    "tasks",
    "jobs",
    "idempotency",
    "archive",
    "regex",
    "regex_child",
    "messages",
    "sessions",
    "pairing",
    "texts",
    "history",
    "family",
    "work",
    "schema",
    "records",
    "generated",
    "wire",
    "tier",
    "errors",
]

# Imports that point upwards all the same, as "importer -> imported", each with its reason.
UPWARDS: dict[str, str] = {}

OPTIONAL = {"cffi", "crc32c", "portalocker"}  # the engine works the same without them
STORE_OPTIONAL = {"xxhash", "yaml", "chatterbot_corpus"}  # the extras redb and demo

# Modules of the engine that may call the operating system about files, each with its reason.
OS_MODULES = {
    "console": "the standard streams of the two commands, which are no files of a database",
    "file": "the one module that opens, reads, maps, writes, grows, syncs, truncates and locks",
    "native": "the libc calls that the standard library lacks, on the descriptors of `file`",
    "testing": "simulated disks and helpers of the tests; no part of a running database",
}
# What everybody may take from `os`: nothing here touches a file.
HARMLESS_OS = {"PathLike", "cpu_count", "environ", "fsdecode", "fspath", "getpid", "register_at_fork", "sep", "urandom"}
FILE_MODULES = {
    "cffi",
    "ctypes",
    "fcntl",
    "glob",
    "io",
    "mmap",
    "msvcrt",
    "pathlib",
    "portalocker",
    "shutil",
    "tempfile",
}
# FILE_MODULES that a module may import although it is not in OS_MODULES, each with its reason.
HARMLESS_FILE_MODULES: dict[str, str] = {}

# The store's imports from inside the engine, as "importer -> imported", each with its reason.
BEHIND_THE_LINE: dict[str, str] = {}

# Modules of the engine that the store's command may use whole, each with its reason. (The library prints nothing.)
FOR_COMMANDS = {"limpet.console": "one home for what keeps texts from steering a terminal, and for how a command ends"}
COMMANDS = {"cli", "demo"}

# Modules that may use `print` and the standard streams, each with its reason.
MAY_PRINT = {
    "console": "it is what the others print by",
    "demo.run": "chooses one of the two streams for demo.screen, which escapes",
    "demo.worker": "speaks JSON with its driver through pipes, and to no terminal",
    "regex_child": "is a program of its own, which speaks with its parent through pipes",
}


class Import(NamedTuple):
    """One imported module: `target` is absolute, with the package's own name first when it was a relative import."""

    target: str
    line: int
    relative: bool
    guarded: bool
    names: tuple[str, ...]


@functools.cache
def sources(package: Path) -> dict[str, ast.Module]:
    """The module's dotted name inside the package -> its syntax tree; the package itself is `__init__`."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts if len(parts) == 1 or parts[-1] != "__init__" else parts[:-1])
        found[name] = ast.parse(path.read_text("utf-8"), filename=str(path))
    return found


def top(module: str) -> str:
    """The line of the order that a module belongs to: `cli.info` to `cli`."""
    return module.split(".")[0]


def imports(package: Path, module: str) -> Iterator[Import]:
    """Every import in a module, wherever it stands."""
    tree = sources(package)[module]
    guarded_lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any(catches_import_error(handler) for handler in node.handlers):
            guarded_lines.update(
                child.lineno for statement in node.body for child in ast.walk(statement) if isinstance(child, ast.stmt)
            )
    # The package that relative imports start from: a sub-package's __init__ is that sub-package itself.
    is_package = module == "__init__" or (package / Path(*module.split(".")) / "__init__.py").exists()
    parts = [package.name] + ([] if module == "__init__" else module.split("."))
    here = parts if is_package else parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, False, node.lineno in guarded_lines, ())
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            if node.level == 0:
                assert node.module is not None
                yield Import(node.module, node.lineno, False, node.lineno in guarded_lines, names)
                continue
            base = here[: len(here) - node.level + 1]
            assert base, f"{module}:{node.lineno} imports from above its package"
            target = ".".join(base + ([node.module] if node.module else []))
            submodules = [
                name for name in names if f"{target}.{name}".removeprefix(f"{package.name}.") in sources(package)
            ]
            for name in submodules:  # `from . import format` imports the module
                yield Import(f"{target}.{name}", node.lineno, True, False, ())
            if len(submodules) < len(names):
                yield Import(target, node.lineno, True, False, tuple(name for name in names if name not in submodules))


def catches_import_error(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(name, ast.Name) and name.id in {"ImportError", "ModuleNotFoundError"} for name in caught)


PACKAGES = [
    pytest.param(ENGINE, ENGINE_ORDER, "ENGINE_ORDER", id="engine"),
    pytest.param(STORE, STORE_ORDER, "STORE_ORDER", id="store"),
]


@pytest.mark.parametrize(("package", "order", "name"), PACKAGES)
def test_every_module_has_its_place_in_the_order(package: Path, order: list[str], name: str) -> None:
    modules = {top(module) for module in sources(package)}
    missing = sorted(modules - set(order))
    assert not missing, f"add {', '.join(missing)} to {name} in {Path(__file__).name}, above everything it imports"
    assert len(order) == len(set(order)), f"{name} names a module twice"


@pytest.mark.parametrize(("package", "order", "name"), PACKAGES)
def test_imports_inside_a_package_point_downwards(package: Path, order: list[str], name: str) -> None:
    wrong = []
    rank = {module: index for index, module in enumerate(order)}
    for module in sources(package):
        for found in imports(package, module):
            if not found.relative:
                continue
            imported = top(found.target.removeprefix(package.name).lstrip(".") or "__init__")
            importer = top(module)
            if importer == imported and importer != "__init__":
                continue  # inside one sub-package
            if f"{module} -> {imported}" in UPWARDS or importer == "testing":
                continue
            if rank.get(imported, -1) <= rank.get(importer, len(order)):
                wrong.append(f"{module}:{found.line} imports {imported}, which {name} has above it")
    assert not wrong, "\n".join(wrong)


def test_imports_inside_the_inspection_point_downwards() -> None:
    def place(module: str) -> str:
        return module.removeprefix("inspection").lstrip(".") or "__init__"

    modules = [module for module in sources(ENGINE) if top(module) == "inspection"]
    assert sorted(map(place, modules)) == sorted(INSPECTION_ORDER), "INSPECTION_ORDER has to name each module once"
    wrong = []
    for module in modules:
        for found in imports(ENGINE, module):
            inside = found.target.removeprefix(ENGINE.name).lstrip(".")
            if not found.relative or top(inside) != "inspection":
                continue
            if INSPECTION_ORDER.index(place(inside)) <= INSPECTION_ORDER.index(place(module)):
                wrong.append(f"{module}:{found.line} imports {inside}, which INSPECTION_ORDER has above it")
    assert not wrong, "\n".join(wrong)


def test_nothing_but_tests_imports_testing() -> None:
    wrong = [
        f"{module}:{found.line}"
        for module in sources(ENGINE)
        for found in imports(ENGINE, module)
        if found.target.startswith("limpet.testing") and top(module) != "testing"
    ]
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("package", "allowed", "guarded"),
    [pytest.param(ENGINE, set(), OPTIONAL, id="engine"), pytest.param(STORE, {"limpet"}, STORE_OPTIONAL, id="store")],
)
def test_packages_import_themselves_relatively_and_need_nothing_installed(
    package: Path, allowed: set[str], guarded: set[str]
) -> None:
    wrong = []
    for module in sources(package):
        for found in imports(package, module):
            distribution = found.target.split(".")[0]
            if found.relative or distribution in sys.stdlib_module_names | allowed:
                continue
            if distribution == package.name:
                wrong.append(f"{module}:{found.line} imports {distribution} by name, but a copy of it may have another")
            elif distribution not in guarded:
                wrong.append(f"{module}:{found.line} imports {found.target}, which is not in the standard library")
            elif not found.guarded:
                wrong.append(f"{module}:{found.line} imports {found.target} outside `try: ... except ImportError`")
    assert not wrong, "\n".join(wrong)


def test_only_the_file_module_speaks_to_the_operating_system_about_files() -> None:
    wrong = []
    for module, tree in sources(ENGINE).items():
        if top(module) in OS_MODULES:
            continue
        for found in imports(ENGINE, module):
            name = found.target.split(".")[0]
            if not found.relative and name in FILE_MODULES and f"{module} -> {name}" not in HARMLESS_FILE_MODULES:
                wrong.append(f"{module}:{found.line} imports {name}")
            if not found.relative and name == "os":
                wrong += [
                    f"{module}:{found.line} imports os.{taken}" for taken in found.names if taken not in HARMLESS_OS
                ]
                if found.target != "os":
                    wrong.append(f"{module}:{found.line} imports {found.target}")
        own = bound_names(tree)
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "os"
                and node.attr not in HARMLESS_OS
            ):
                wrong.append(f"{module}:{node.lineno} uses os.{node.attr}")
            if (
                isinstance(node, ast.Name)
                and node.id == "open"
                and isinstance(node.ctx, ast.Load)
                and "open" not in own
            ):
                wrong.append(f"{module}:{node.lineno} uses the builtin open")
    assert not wrong, "\n".join(
        [*wrong, "Move it into engine/limpet/file.py, or give the module a reason in OS_MODULES."]
    )


def bound_names(tree: ast.Module) -> set[str]:
    """The names a module defines or imports at its top level, which hide builtins."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
    return names & set(dir(builtins))


def test_the_store_uses_only_what_the_engine_exports() -> None:
    wrong = []
    for module, tree in sources(STORE).items():
        for found in imports(STORE, module):
            if (
                found.relative
                or found.target.split(".")[0] != "limpet"
                or f"{module} -> {found.target}" in BEHIND_THE_LINE
            ):
                continue
            if top(module) in COMMANDS and found.target in FOR_COMMANDS:
                continue
            if found.target != "limpet":
                wrong.append(f"{module}:{found.line} imports {found.target}")
            wrong += [
                f"{module}:{found.line} imports limpet.{name}"
                for name in found.names
                if name not in limpet.__all__ and not (top(module) in COMMANDS and f"limpet.{name}" in FOR_COMMANDS)
            ]
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "limpet"
                and node.attr not in limpet.__all__
            ):
                wrong.append(f"{module}:{node.lineno} uses limpet.{node.attr}")
    assert not wrong, "\n".join(
        [*wrong, "The store may use the names in limpet.__all__ only, its command FOR_COMMANDS too."]
    )


@pytest.mark.parametrize("package", [pytest.param(ENGINE, id="engine"), pytest.param(STORE, id="store")])
def test_commands_print_by_the_console_only(package: Path) -> None:
    """`messages` and `stats` printed texts of users raw: each print was a place where escaping could be forgotten."""
    wrong = []
    for module, tree in sources(package).items():
        if module in MAY_PRINT or top(module) == "testing":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in {"print", "input"}:
                wrong.append(f"{module}:{node.lineno} uses {node.id}")
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "sys"
                and node.attr.strip("_") in {"stdin", "stdout", "stderr"}
            ):
                wrong.append(f"{module}:{node.lineno} uses sys.{node.attr}")
    assert not wrong, "\n".join([*wrong, "Use limpet.console, or give the module a reason in MAY_PRINT."])


def test_every_exception_to_these_rules_is_still_needed_and_has_its_reason() -> None:
    for table in (UPWARDS, OS_MODULES, HARMLESS_FILE_MODULES, BEHIND_THE_LINE, FOR_COMMANDS, MAY_PRINT):
        assert all(len(reason.split()) > 2 for reason in table.values()), table
    edges = set()
    for package in (ENGINE, STORE):
        for module in sources(package):
            for found in imports(package, module):
                inside = found.target.removeprefix(package.name).lstrip(".") or "__init__"
                edges |= {f"{module} -> {found.target}", f"{module} -> {top(inside)}"}
    stale = sorted((UPWARDS.keys() | HARMLESS_FILE_MODULES.keys() | BEHIND_THE_LINE.keys()) - edges)
    stale += sorted(OS_MODULES.keys() - {top(module) for module in sources(ENGINE)})
    assert not stale, f"these exceptions are not needed any more: {', '.join(stale)}"
