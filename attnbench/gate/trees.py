"""The code that a side measures: the working tree, or a git revision in a throw-away worktree and environment."""

from __future__ import annotations

import importlib.resources
import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attnbench
from attnbench.case import Case
from attnbench.errors import UserError, nearest
from attnbench.executors.worker_process import HERE, Interpreter
from attnbench.store import KEEPABLE_VERSIONS, SCHEMA_VERSION

_PROBE_LIMIT_S = 180.0
_PACKAGE = "attnbench"


class BrokenTreeError(UserError):
    """A tree that does not build: it is there, and its code cannot be imported or installed."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Code that can be measured.

    label: in words, `the working tree` or `origin/main (1a2b3c4d5e6f)`. environment: as its own `collect` tells it.
    mechanisms, workloads: those it knows by name. options: of its worker's messages.
    """

    label: str
    interpreter: Interpreter
    environment: Mapping[str, Any]
    mechanisms: frozenset[str]
    workloads: frozenset[str]
    options: frozenset[str]

    def knows(self, case: Case) -> bool:
        return case.mechanism in self.mechanisms and str(case.workload) in self.workloads


def working_tree(*, device: str) -> Tree:
    """The code that runs this command, as its workers see it.

    Raises UserError when workers would import attnbench from elsewhere.
    """
    facts = _ask(HERE, label="the working tree", device=device)
    ours, theirs = Path(attnbench.__file__).resolve(), Path(facts["file"]).resolve()
    if ours != theirs:
        raise UserError(
            f"this command runs attnbench from {ours.parent}, its workers from {theirs.parent}: leave the folder that "
            "holds the other one, or set PYTHONPATH"
        )
    return _tree(facts, label="the working tree", interpreter=HERE)


@contextmanager
def copy(*, label: str, device: str, edit: Callable[[Path], None] | None = None) -> Iterator[Tree]:
    """A copy of the package that runs, until the end of the block; needs no git.

    edit: changes the copy, given its root, before anything runs.

    Raises BrokenTreeError where the copy does not build.
    """
    with tempfile.TemporaryDirectory(prefix="attnbench-copy-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        copy_package(folder / "tree")
        if edit is not None:
            edit(folder / "tree")
        interpreter = _borrowing(folder / "tree", label=label, folder=folder)
        yield _tree(_ask(interpreter, label=label, device=device), label=label, interpreter=interpreter)


def copy_package(root: Path) -> None:
    """Copy the package that runs, and no other file of its checkout, into a new folder."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(attnbench.__file__).parent, root / _PACKAGE, ignore=ignored)


@contextmanager
def worktree_of(name: str) -> Iterator[Path]:
    """A git worktree of a revision, detached, in a temporary folder until the end of the block.

    Raises UserError where there is no such revision.
    """
    repository = checkout()
    commit = resolve(name, repository=repository)
    folder = Path(tempfile.mkdtemp(prefix="attnbench-revision-"))
    try:
        git(repository, "worktree", "prune")  # of a command that was killed
        git(repository, "worktree", "add", "--quiet", "--detach", str(folder / "tree"), commit)
        yield folder / "tree"
    finally:
        subprocess.run(
            ["git", "-C", str(repository), "worktree", "remove", "--force", str(folder / "tree")],
            capture_output=True,
        )
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def revision(name: str, *, device: str, install: bool = False) -> Iterator[Tree]:
    """A git revision of the checkout that attnbench runs from, until the end of the block.

    Its worktree and its environment lie in a temporary folder. The environment takes every library from this one, so
    that two sides differ in attnbench's code alone; with `install` it is one of its own, into which pip installs the
    revision with the dependencies that it declares.

    Raises UserError where there is no such revision, and BrokenTreeError where it does not build.
    """
    commit = resolve(name, repository=checkout())
    label = commit[:12] if commit.startswith(name) else f"{name} ({commit[:12]})"
    with worktree_of(commit) as worktree:
        folder = worktree.parent
        if not (worktree / _PACKAGE / "__init__.py").is_file():
            raise BrokenTreeError(f"the revision {label} holds no package {_PACKAGE}")
        interpreter = (_installed if install else _borrowing)(worktree, label=label, folder=folder)
        facts = _ask(interpreter, label=f"the revision {label}", device=device)
        if not Path(facts["file"]).resolve().is_relative_to(folder.resolve()):
            raise BrokenTreeError(
                f"the environment of the revision {label} imports attnbench from {facts['file']}"
            )
        if facts["schema_version"] not in KEEPABLE_VERSIONS:
            raise UserError(
                f"the revision {label} writes results of schema version {facts['schema_version']}, this attnbench "
                f"of version {SCHEMA_VERSION}: record a run of each and use attnbench compare"
            )
        yield _tree(facts, label=label, interpreter=interpreter)


def oddities(name: str) -> list[str]:
    """What is worth knowing of the working tree beside a revision, in words without a full stop."""
    repository = checkout()
    commit = resolve(name, repository=repository)
    said = []
    if git(repository, "status", "--porcelain", "--", _PACKAGE):
        said.append("the working tree has uncommitted changes, and they are part of the new side")
    measuring = git(repository, "diff", "--name-only", commit, "--", f"{_PACKAGE}/measure").splitlines()
    if measuring:
        said.append(
            f"the sides do not measure alike ({', '.join(Path(file).name for file in measuring)} in {_PACKAGE}/measure "
            "changed): a difference may be one of measuring"
        )
    declared = repository / "pyproject.toml"
    wanted = [
        _dependencies(git(repository, "show", f"{commit}:pyproject.toml", may_fail=True)),
        _dependencies(declared.read_text(encoding="utf-8") if declared.is_file() else ""),
    ]
    if None not in wanted and wanted[0] != wanted[1]:
        said.append(
            f"{name} declares other dependencies than the working tree; both sides run with the libraries installed "
            "here (--install gives the revision its own)"
        )
    return said


def checkout() -> Path:
    """The root of the git checkout that attnbench runs from.

    Raises UserError where it runs from none.
    """
    package = Path(attnbench.__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(package), "rev-parse", "--show-toplevel"], capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise UserError("git is not installed, and revisions are measured from a git checkout") from error
    root = Path(done.stdout.strip()) if done.returncode == 0 else None
    if root is None or not (root / _PACKAGE).is_dir() or not (root / _PACKAGE).samefile(package):
        raise UserError(
            f"attnbench runs from {package}, which is no git checkout of it, so there are no revisions to measure"
        )
    return root


def resolve(name: str, *, repository: Path) -> str:
    """The commit that a name stands for.

    Raises UserError, with the nearest branch or tag, where there is none.
    """
    found = git(repository, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", may_fail=True)
    if found and not name.startswith("-"):
        return found
    known = git(repository, "for-each-ref", "--format=%(refname:short)").split()
    shallow = git(repository, "rev-parse", "--is-shallow-repository") == "true"
    hint = "the clone is shallow: fetch with more depth" if shallow else nearest(name, [*known[:20], "HEAD"])
    raise UserError(f"there is no revision '{name}' in {repository}; {hint}")


def search_path(first: Path) -> str:
    """PYTHONPATH with a folder before what is there: libraries stay on it, and another attnbench must not win."""
    return os.pathsep.join([str(first), *filter(None, [os.environ.get("PYTHONPATH")])])


def git(repository: Path, *arguments: str, may_fail: bool = False) -> str:
    """What git prints, without the last newline; with `may_fail`, "" where it refuses.

    Raises UserError with git's own words.
    """
    done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout.strip()
    if may_fail:
        return ""
    words = done.stderr.strip().splitlines()
    raise UserError(f"git {arguments[0]} failed in {repository}: {words[-1] if words else done.returncode}")


# ------------------------------------------------------------------------------------------------------------


def _borrowing(worktree: Path, *, label: str, folder: Path) -> Interpreter:
    """An environment of its own that finds the worktree's package first, and all libraries where this one has them."""
    del label
    packages, python = _environment(folder / "environment", with_pip=False)
    # A folder that holds the package alone: the other folders of the root must not become importable.
    (folder / "path").mkdir()
    (folder / "path" / _PACKAGE).symlink_to(worktree / _PACKAGE, target_is_directory=True)
    ours = [*site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if site.ENABLE_USER_SITE:
        ours.append(site.getusersitepackages())
    lines = [
        str(folder / "path"),
        *(f"import site; site.addsitedir({path!r})" for path in dict.fromkeys(ours)),
    ]
    (packages / "a-revision.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Interpreter(command=(str(python), "-P"), variables={"PYTHONPATH": search_path(folder / "path")})


def _installed(worktree: Path, *, label: str, folder: Path) -> Interpreter:
    _, python = _environment(folder / "environment", with_pip=True)
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", str(worktree)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    if done.returncode:
        raise BrokenTreeError(f"the revision {label} does not install: {_last_line(done.stderr)}")
    return Interpreter(command=(str(python), "-P"), variables={"PYTHONPATH": ""})


def _environment(folder: Path, *, with_pip: bool) -> tuple[Path, Path]:
    """A virtual environment: its folder of packages, and its python."""
    venv.EnvBuilder(with_pip=with_pip, symlinks=True).create(folder)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return folder / "lib" / version / "site-packages", folder / "bin" / "python"


def _ask(interpreter: Interpreter, *, label: str, device: str) -> dict[str, Any]:
    """The probe's answer.

    Raises BrokenTreeError where there is none.
    """
    source = (importlib.resources.files("attnbench.gate") / "probe.py").read_text(encoding="utf-8")
    try:
        done = subprocess.run(
            [*interpreter.command, "-c", source, device],
            capture_output=True,
            text=True,
            timeout=_PROBE_LIMIT_S,
            env=interpreter.environment(),
        )
    except subprocess.TimeoutExpired as error:
        raise BrokenTreeError(f"{label} does not build: no answer within {_PROBE_LIMIT_S:.0f} s") from error
    if done.returncode:
        raise BrokenTreeError(f"{label} does not build: {_last_line(done.stderr)}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _tree(facts: Mapping[str, Any], *, label: str, interpreter: Interpreter) -> Tree:
    return Tree(
        label=label,
        interpreter=Interpreter(
            command=interpreter.command,
            variables=interpreter.variables,
            case_fields=frozenset(facts["case_fields"]),
            protocol_fields=frozenset(facts["protocol_fields"]),
        ),
        environment=facts["environment"],
        mechanisms=frozenset(facts["mechanisms"]),
        workloads=frozenset(facts["workloads"]),
        options=frozenset(facts["options"]),
    )


def _dependencies(pyproject: str) -> Sequence[str] | None:
    try:
        found: Sequence[str] | None = tomllib.loads(pyproject).get("project", {}).get("dependencies")
    except tomllib.TOMLDecodeError:
        return None
    return found


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip()[:300] if lines else "it says nothing"
