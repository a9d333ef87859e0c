"""The shape of the house: imports point one way, one clock, and torch stays out of the command line's start."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import attnbench
from attnbench.verification.kept import BEARING
from attnbench.version import __version__

PACKAGE = Path(attnbench.__file__).parent
ROOT = PACKAGE.parent
SIGNPOSTS = ("kernels", "baselines", "sweeps")

# cli -> commands -> their work -> measuring and data -> what there is -> the nouns. A unit is a module or a folder.
LAYERS = (
    {"errors", "version", "case"},
    {
        "providers",
        "catalogue",
        "mechanism_files",
        "registry",
        "semantics",
        "words",
        "markdown",
        "options",
        "usage",
        "places",
    },
    {"measure", "store", "sweeps", "curves", "crossings", "shapes", "stats"},
    {
        "executors",
        "sweeping",
        "verification",
        "listing",
        "summary",
        "plots",
        "progress",
        "tuning",
        "comparison",
        "gate",
        "profiling",
        "importing",
        "report",
        "watching",
        "merging",
        "models",
        "paper",
        "crossover",
        "parallel",
    },
    {"commands"},
    {"cli"},
    {"__main__"},
)
IMPLEMENTATIONS = {"kernels", "baselines"}  # beside the layers: the registry names them, nobody imports them,
# but for the tuner, whose subject they are, and those who hand states on, which no row of the table does: the models
# and sequence parallelism, which needs the states of the PyTorch provider too.
TUNES = {"tuning": {"kernels"}, "models": {"kernels"}, "parallel": {"kernels", "baselines"}}
# All that an implementation may know of the house.
KNOWN_TO = {"kernels": {"kernels"}, "baselines": {"baselines", "kernels", "case", "semantics"}}
TORCH = {"measure", "semantics", "kernels", "baselines", "tuning", "profiling", "models", "parallel"}
TIMING = {
    "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time", "process_time_ns", "time_ns",
    "thread_time", "elapsed_time", "do_bench", "timeit",
}  # fmt: skip

FILES = sorted(file for file in PACKAGE.rglob("*.py"))


def _name(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def _unit(file: Path) -> str:
    """The module or folder of the package that a file belongs to; "" for the package's own __init__."""
    first = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _imported(tree: ast.AST) -> Iterator[str]:
    """Absolute names of everything imported below a node, at any depth: `a.b` for `from a import b` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def _units_imported(file: Path) -> set[str]:
    """Units of the package that a file imports, its own left out."""
    known = {_unit(f) for f in FILES}
    parts = [name.split(".") for name in _imported(_tree(file)) if name.split(".")[0] == "attnbench"]
    return {p[1] for p in parts if len(p) > 1 and p[1] in known} - {_unit(file)}


def _at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported, TYPE_CHECKING blocks and function bodies left out."""
    todo: list[ast.stmt] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            todo += node.orelse
            continue
        yield node
        todo += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def _rank(unit: str) -> int:
    return next(rank for rank, layer in enumerate(LAYERS) if unit in layer)


# ---------------------------------------------------------------- imports


def test_every_unit_has_its_place() -> None:
    placed = set().union(*LAYERS) | IMPLEMENTATIONS
    assert {_unit(file) for file in FILES} - {""} == placed


@pytest.mark.parametrize("file", [f for f in FILES if _unit(f) not in IMPLEMENTATIONS | {""}], ids=_name)
def test_imports_point_one_way(file: Path) -> None:
    own = _rank(_unit(file))
    known = _units_imported(file) & IMPLEMENTATIONS
    assert known <= TUNES.get(_unit(file), set()), "only the registry knows implementations, and by name"
    upward = {unit for unit in _units_imported(file) - known if _rank(unit) > own}
    assert not upward


def test_what_bears_on_a_row_of_verify_is_all_that_a_worker_imports() -> None:
    """Whose sources change, by that list, is checked anew."""
    of_workers = [file for file in FILES if _name(file) != "measure/agreement.py"]  # a program of its own
    needed = {"measure", "catalogue", *IMPLEMENTATIONS}
    while more := {u for f in of_workers if _unit(f) in needed for u in _units_imported(f)} - needed:
        needed |= more
    assert needed == {name.removesuffix(".py") for name in BEARING}
    assert all((PACKAGE / name).exists() for name in BEARING)


def test_units_of_one_layer_do_not_import_each_other_in_a_circle() -> None:
    imports: dict[str, set[str]] = {}
    for file in FILES:
        if _unit(file):
            imports.setdefault(_unit(file), set()).update(_units_imported(file))
    settled: set[str] = set()
    while free := {unit for unit, needed in imports.items() if needed <= settled} - settled:
        settled |= free
    assert set(imports) - settled == set()


@pytest.mark.parametrize("file", [f for f in FILES if _unit(f) in IMPLEMENTATIONS], ids=_name)
def test_implementations_know_nothing_of_the_harness(file: Path) -> None:
    assert _units_imported(file) <= KNOWN_TO[_unit(file)]


def test_what_implementations_may_know_is_really_used() -> None:
    used = {unit: set[str]() for unit in IMPLEMENTATIONS}
    for file in FILES:
        if _unit(file) in IMPLEMENTATIONS:
            used[_unit(file)] |= _units_imported(file)
    assert {unit: known | {unit} for unit, known in used.items()} == KNOWN_TO


@pytest.mark.parametrize("file", [f for f in FILES if _unit(f) not in TORCH], ids=_name)
def test_torch_is_imported_where_tensors_live(file: Path) -> None:
    found = {
        name
        for node in _at_import(_tree(file))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in _imported(node)
        if name.split(".")[0] in ("torch", "triton")
    }
    assert not found


@pytest.mark.parametrize("file", [f for f in FILES if _unit(f) not in ("measure", "")], ids=_name)
def test_there_is_one_clock(file: Path) -> None:
    """Nobody but `measure` reads a clock; sleeping and dates are no timing."""
    found = set()
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Attribute):
            of_time = isinstance(node.value, ast.Name) and node.value.id == "time" and node.attr == "time"
            if node.attr in TIMING or of_time:
                found.add(node.attr)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {
                n
                for n in _imported(node)
                if n.split(".")[-1] in TIMING or n in ("time.time", "triton.testing")
            }
        elif isinstance(node, ast.Call):
            timed_events = [k for k in node.keywords if k.arg == "enable_timing"]
            found |= {"enable_timing"} if timed_events else set()
    assert not found


# ---------------------------------------------------------------- the package from outside


def _python(code: str, *, cwd: Path | None = None, path: Path | None = None) -> str:
    """Run code in a fresh interpreter; its stdout."""
    import os

    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        variables["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=cwd, env=variables
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["sweep", "--help"],
        ["tune", "--help"],
        ["compare", "--help"],
        ["model", "train-step", "--help"],
        ["paper", "--help"],
        ["parallel", "run", "--help"],
        ["profile", "--help"],
    ],
    ids=" ".join,
)
def test_help_imports_neither_torch_nor_the_data_libraries(arguments: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["attnbench", *{arguments!r}]
from attnbench.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {{"torch", "triton", "pandas", "pyarrow", "scipy", "matplotlib", "numpy"}} & set(sys.modules)
assert not heavy, heavy
"""
    assert "attnbench" in _python(code)


def test_who_only_hands_work_to_workers_does_not_wait_for_torch() -> None:
    code = """
import sys
import attnbench.executors.pool, attnbench.sweeping
sys.argv = ["attnbench", "sweep", "quick", "--device", "cpu", "--dry-run"]
from attnbench.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
assert "torch" not in sys.modules
"""
    assert _python(code)


def test_the_public_names_are_what_all_says() -> None:
    code = """
import attnbench
print(sorted(attnbench.__all__))
submodules = {"version", "store", "case", "errors"}
print(sorted(n for n in vars(attnbench) if not n.startswith("_") and n not in submodules))
print(attnbench.load_results.__module__, attnbench.__version__)
"""
    stated, at_import, resolved = _python(code).splitlines()
    assert stated == "['__version__', 'load_results']"
    # `load_results` comes on first use; `annotations` and typing's names are no one's business but are there
    assert at_import == "['Any', 'TYPE_CHECKING', 'annotations']"
    assert resolved == f"attnbench.store {__version__}"


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'compare'"):
        attnbench.compare  # noqa: B018


def test_the_kernels_are_public() -> None:
    from attnbench import kernels

    assert set(kernels.__all__) == {"lightning_attention_1", "lightning_attention_2", "lightning_decode"}
    assert all(callable(getattr(kernels, name)) for name in kernels.__all__)


# ---------------------------------------------------------------- the checkout

CHECKOUT = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="installed, not a checkout")


@CHECKOUT
@pytest.mark.parametrize("name", SIGNPOSTS)
def test_signposts_are_relative_links_into_the_package(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"attnbench/{name}"
    assert link.resolve() == (PACKAGE / name).resolve()
    assert link.is_dir()


@CHECKOUT
def test_a_signpost_is_no_package() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
try:
    import kernels
except ImportError as error:
    print(error)
"""
    assert "import attnbench.kernels" in _python(code)


@CHECKOUT
def test_the_shim_puts_its_folder_last(tmp_path: Path) -> None:
    """`python cli.py` finds the checkout, and still another package named `kernels` before the signpost."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("theirs = True\n")
    code = f"""
import runpy, sys
sys.path[0] = {str(ROOT)!r}  # as for `python cli.py`
runpy.run_path({str(ROOT / "cli.py")!r}, run_name="not_main")
assert sys.path[-1] == {str(ROOT)!r}, sys.path
assert sys.path.count({str(ROOT)!r}) <= 2, sys.path  # once more where the install is an editable one
import kernels
assert kernels.theirs
"""
    _python(code, cwd=tmp_path, path=tmp_path)


@CHECKOUT
def test_the_shim_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "--version"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, f"attnbench {__version__}\n"), done.stderr


@CHECKOUT
def test_only_the_package_is_installed() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["setuptools"]["packages"]["find"]["include"] == ["attnbench*"]
    data = {
        str(f.relative_to(PACKAGE))
        for p in settings["tool"]["setuptools"]["package-data"]["attnbench"]
        for f in PACKAGE.glob(p)
    }
    assert {str(f.relative_to(PACKAGE)) for f in PACKAGE.rglob("*.toml")} <= data
    assert "pythonpath" not in settings["tool"]["pytest"]["ini_options"]
