"""Who may import whom, and what is loaded when: the rules that keep the rooms apart."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nmflow

ROOT = Path(nmflow.__file__).parent

BASE = {"arrays", "errors", "pattern", "solution", "sums"}
"""Values, their sums, and errors, for every room above them."""

ALLOWED: dict[str, set[str]] = {
    "arrays": set(),
    "cores": set(),
    "errors": set(),
    "kernels": set(),
    "names": set(),
    "arithmetic": {"kernels"},
    "pattern": {"errors"},
    "solution": {"errors", "given", "pattern"},
    "sums": set(),
    "integers": {"arrays"},
    "asked": {"cores", "errors"},
    "given": {"arrays", "errors"},
    "problem": BASE | {"given"},
    "reading": BASE | {"problem", "kernels"},
    "switching": BASE | {"arithmetic", "given", "problem", "reading", "kernels", "crew"},
    "cutting": BASE | {"problem"},
    "earlier": BASE | {"problem", "cutting", "given", "kernels"},
    "blocks": BASE | {"problem", "reading", "cutting", "earlier", "integers"},
    "network": BASE | {"arithmetic", "given", "integers"},
    "duals": BASE | {"blocks", "kernels"},
    "certificate": BASE | {"blocks", "duals", "kernels", "crew", "integers"},
    "formats": BASE | {"asked", "crew", "given", "kernels"},
    "diversity": BASE | {"asked", "given", "problem", "cutting", "kernels"},
    # A certificate knows no solver; a solver may hand it duals in the certificate's own terms.
    "solvers": BASE
    | {"asked", "problem", "reading", "blocks", "kernels", "network", "duals", "certificate", "crew"}
    | {"workspace", "integers"},
    "workspace": {"arrays"},
    "crew": {"arithmetic", "kernels", "workspace"},
    "dual_arrays": BASE | {"problem", "reading", "cutting", "blocks", "duals"},
    "gathered": BASE | {"problem", "cutting", "certificate"},
    "running": BASE
    | {"problem", "cutting", "blocks", "duals", "certificate", "solvers"}
    | {"arithmetic", "switching", "crew", "dual_arrays", "gathered", "workspace"},
    "pipeline": BASE | {"asked", "given", "problem", "solvers", "switching", "earlier", "running"},
    "checkpoint": BASE | {"", "asked", "kernels", "names", "certificate", "formats", "diversity", "pipeline"},
    "torch": BASE
    | {
        "asked",
        "given",
        "names",
        "problem",
        "certificate",
        "formats",
        "diversity",
        "kernels",
        "pipeline",
        "checkpoint",
    },
    "bench": BASE | {"", "asked", "cores", "given", "kernels", "solvers", "pipeline", "checkpoint"},
    "__main__": {"cli"},
    "cli": BASE | {"", "asked", "bench", "checkpoint", "formats", "diversity", "network", "pipeline", "torch"},
    "": BASE | {"network", "solvers", "pipeline", "diversity", "formats"},
}
"""What each room may import, at the top of a file or inside a function; "" is nmflow/__init__.py."""

HEAVY = {
    "numba": {"kernels"},
    "llvmlite": {"kernels"},
    "torch": {"torch"},
    "triton": {"torch"},
    **{name: set[str]() for name in ("ortools", "networkx", "scipy", "matplotlib", "dask", "distributed")},
}
"""Libraries that cost time or may be missing, and the rooms whose files may import them at the top."""

FILES = sorted(path for path in ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Each module that a file imports, and whether that happens as the file is loaded.

    What only a type checker reads imports nothing, and is left out.
    """

    def visit(node: ast.AST, at_load: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                yield from visit(child, at_load)
            return
        if isinstance(node, ast.Import):
            yield from ((name.name, at_load) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield (whole if whole in MODULES else node.module), at_load
        inside = at_load and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_downwards(path: Path) -> None:
    room = room_of(module_of(path))
    assert room in ALLOWED, f"a new room: say in ALLOWED what {room} may import"
    used = {room_of(name) for name, _ in imports(path) if name.split(".")[0] == "nmflow"}
    assert used - {room} <= ALLOWED[room]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    room = room_of(module_of(path))
    for name, at_load in imports(path):
        library = name.split(".")[0]
        if at_load and library in HEAVY:
            assert room in HEAVY[library], f"{library} must be imported inside the function that needs it"


def test_rules_have_no_cycle() -> None:
    def reaches(room: str, seen: tuple[str, ...] = ()) -> None:
        assert room not in seen, f"rooms import each other: {' -> '.join((*seen, room))}"
        for other in ALLOWED[room]:
            reaches(other, (*seen, room))

    for room in ALLOWED:
        reaches(room)


def test_modules_have_no_cycle() -> None:
    graph = {
        module_of(path): {name for name, _ in imports(path) if name in MODULES and name != "nmflow"} for path in FILES
    }
    done: set[str] = set()

    def visit(module: str, seen: tuple[str, ...] = ()) -> None:
        assert module not in seen, f"modules import each other: {' -> '.join((*seen, module))}"
        if module not in done:
            for other in graph[module]:
                visit(other, (*seen, module))
            done.add(module)

    for module in graph:
        visit(module)


def test_the_walk_sees_imports(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\n"
        "def f():\n    import d\n    from nmflow import pattern\nclass K:\n    from nmflow.errors import NmflowError\n"
    )
    assert list(imports(path)) == [
        *(("a", True), ("c", True), ("d", False)),
        *(("nmflow.pattern", False), ("nmflow.errors", True)),
    ]


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a new process after `code`."""
    code += "\nimport sys; print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("LOADED")[2].split())


HELP = """
import sys
from nmflow.cli import main
sys.argv = ["nmflow", *{args!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize(
    "code",
    [
        "import nmflow",
        "from nmflow import Pattern, NmflowError; Pattern.parse('2:4')",
        *(
            HELP.format(args=args)
            for args in (
                ["--help"],
                ["--version"],
                ["prune", "--help"],
                ["verify", "--help"],
                ["export", "--help"],
                ["inspect", "--help"],
            )
        ),
    ],
    ids=["import", "pattern", "help", "version", "prune help", "verify help", "export help", "inspect help"],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    loaded = loaded_by(code)
    assert "nmflow" in loaded
    assert not loaded & (HEAVY.keys() | {"safetensors", "ml_dtypes"})


WITHOUT_POSIX = """
import sys, os, numba, torch  # which ask what there is
sys.modules["fcntl"] = None
for name in ("pwrite", "preadv", "O_NOFOLLOW", "O_CLOEXEC", "O_DIRECTORY", "register_at_fork", "sched_getaffinity"):
    delattr(os, name)
import numpy as np, nmflow, nmflow.formats, nmflow.diversity, nmflow.checkpoint, nmflow.cli.app, nmflow.torch
from types import SimpleNamespace
assert nmflow.solve(np.ones((4, 4)), 2, 4).proven
nmflow.checkpoint.source.os = SimpleNamespace(name="nt")
try:
    nmflow.checkpoint.open_source("model")
except nmflow.NmflowError as error:
    print(error)
"""


def test_what_needs_no_files_works_without_posix(tmp_path: Path) -> None:
    """Windows has none of these; what is imported there is imported here."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout.startswith("checkpoints need Linux, macOS or WSL"), done.stderr


def test_import_loads_numpy_alone() -> None:
    """Beside NumPy, only the standard library."""
    with_numpy = loaded_by("import numpy")
    assert loaded_by("import nmflow") - with_numpy <= {"nmflow", *sys.stdlib_module_names}
