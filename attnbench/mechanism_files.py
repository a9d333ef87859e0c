"""Mechanisms in a file of one's own, with no packaging: `path/to/file.py:name` or `path/to/file.py:name:semantics`.

The name is that of a `Mechanism` in the file or of a function that keeps the contract of `attnbench.providers`; of a
function the semantics must be said, as nothing else tells what it should compute. Worker processes are told of such
files by an environment variable, and load them for themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Collection
from modulefinder import ModuleFinder
from pathlib import Path
from types import ModuleType

from attnbench.errors import UserError, nearest, unknown
from attnbench.providers import Cost, Mechanism, Provider

# Holds such texts with absolute paths, separated by commas as on the command line.
VARIABLE = "ATTNBENCH_MECHANISMS"

_TEXT = re.compile(r"(?P<path>.+\.py):(?P<name>[A-Za-z_]\w*)(?::(?P<semantics>[a-z-]+))?")


def names_a_file(text: str) -> bool:
    """Is this `path/to/file.py:name`, or meant to be?"""
    return ".py:" in text or text.endswith(".py")


def remember(text: str, *, taken: Collection[str] = ()) -> Mechanism:
    """Load a mechanism and put it into the environment, for `remembered` here and in processes started from here.

    Raises UserError where the text, the file or what it names is not what it should be, or its name is taken.
    """
    mechanism = _load(text)
    path, _, rest = text.partition(".py:")
    absolute = f"{Path(f'{path}.py').resolve()}:{rest}"
    known = _known()
    if absolute not in known:
        if mechanism.name in taken:
            raise UserError(f"{text} is called '{mechanism.name}', as a mechanism that is there: rename it")
        os.environ[VARIABLE] = ",".join([*known, absolute])
    return mechanism


def remembered() -> list[Mechanism]:
    """The mechanisms that the environment names.

    Raises UserError as `remember` does.
    """
    return [_load(text) for text in _known()]


def sources(path: Path) -> list[Path]:
    """A file and what it imports from its own folder, the file first: what it computes depends on all of them."""
    finder = ModuleFinder(path=[str(path.parent)], excludes=["attnbench"])
    finder.run_script(str(path))
    files = [getattr(module, "__file__", None) for module in finder.modules.values()]
    beside = {Path(file) for file in files if file is not None}
    return [path, *sorted(beside - {path})]


def _known() -> list[str]:
    return [text for text in os.environ.get(VARIABLE, "").split(",") if text]


def _load(text: str) -> Mechanism:
    match = _TEXT.fullmatch(text)
    if match is None:
        raise UserError(f"expected path/to/file.py:name or path/to/file.py:name:semantics, got '{text}'")
    path, name, semantics = Path(match["path"]).resolve(), match["name"], match["semantics"]
    module = _module(path)
    if not hasattr(module, name):
        own = [n for n, value in vars(module).items() if not n.startswith("_") and callable(value)]
        raise UserError(f"{match['path']} has no '{name}'; {nearest(name, own)}")
    found = getattr(module, name)
    if isinstance(found, Mechanism):
        return found
    if not callable(found):
        raise UserError(
            f"{text}: expected a Mechanism or a function, '{name}' is of type {type(found).__name__}"
        )
    return _of_function(path, module=module, name=name, semantics=semantics, text=text)


def _of_function(path: Path, *, module: ModuleType, name: str, semantics: str | None, text: str) -> Mechanism:
    from attnbench.semantics import SEMANTICS  # which imports torch, as the file has done by now

    if semantics is None:
        raise UserError(
            f"'{name}' is a function: say what it computes, e.g. {text}:softmax (one of {', '.join(SEMANTICS)})"
        )
    if semantics not in SEMANTICS:
        raise unknown("semantics", semantics, SEMANTICS)
    known = SEMANTICS[semantics]
    cost: Cost = "N W" if known.windowed else "N" if known.kept == "state" else "N^2"
    provider = Provider(
        target=f"{module.__name__}:{name}",
        distribution=path.name,
        version=hashlib.sha256(b"".join(file.read_bytes() for file in sources(path))).hexdigest()[:8],
        devices=("cuda", "cpu"),
    )
    told = (getattr(module, name).__doc__ or "").strip().splitlines()
    summary = told[0] if told else f"{name} of {path.name}"
    return Mechanism(name=name, semantics=semantics, summary=summary, cost=cost, providers=(provider,))


def _module(path: Path) -> ModuleType:
    """The file as a module, under a name of its own by which targets find it; executed once in a process."""
    name = f"attnbench_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # of a path that ends in .py there is one
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:  # as a script's own folder is; last, so that it hides no library
        sys.path.append(str(path.parent))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results, and perhaps JSON
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's own code, whatever it raises
        del sys.modules[name]
        raise UserError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module
