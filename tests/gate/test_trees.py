"""Revisions of a small repository: checked out, probed, and gone afterwards."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import attnbench
from attnbench.errors import UserError
from attnbench.gate import bisecting, trees
from attnbench.gate.trees import BrokenTreeError

Commit = Callable[..., str]
IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@b.c")


@pytest.fixture
def commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commit:
    """A repository that attnbench seems to run from; `commit("text")` is one more commit, with that module."""
    root = tmp_path / "repository"
    (root / "attnbench").mkdir(parents=True)
    trees_of = ("-C", str(root))
    subprocess.run(["git", "init", "-q", "-b", "main", str(root)], check=True)
    monkeypatch.setattr(attnbench, "__file__", str(root / "attnbench" / "__init__.py"))

    def commit(text: str, *, message: str = "a change", file: str = "attnbench/__init__.py") -> str:
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text(text)
        subprocess.run(["git", *trees_of, "add", "-A"], check=True)
        subprocess.run(["git", *trees_of, *IDENTITY, "commit", "-q", "-m", message], check=True)
        return trees.resolve("HEAD", repository=root)

    return commit


def _worktrees() -> Sequence[str]:
    return trees.git(trees.checkout(), "worktree", "list").splitlines()


def test_a_revision_that_does_not_build_is_one_sentence_and_leaves_nothing(commit: Commit) -> None:
    name = commit("raise RuntimeError('no kernel for you')")
    sentence = rf"the revision main \({name[:12]}\) does not build: RuntimeError: no kernel for you"
    with pytest.raises(BrokenTreeError, match=sentence), trees.revision("main", device="cpu"):
        raise AssertionError("it was entered")
    assert len(_worktrees()) == 1


def test_a_revision_without_the_package(commit: Commit) -> None:
    commit("", file="other.txt")
    with (
        pytest.raises(BrokenTreeError, match="holds no package attnbench"),
        trees.revision("main", device="cpu"),
    ):
        raise AssertionError("it was entered")


def test_a_revision_that_is_not_there(commit: Commit) -> None:
    commit("")
    with pytest.raises(UserError, match=r"there is no revision 'mian' in .*; did you mean 'main'\?"):
        trees.resolve("mian", repository=trees.checkout())
    with pytest.raises(UserError, match="there is no revision '--all'"):
        trees.resolve("--all", repository=trees.checkout())


def test_a_copy_needs_no_git_and_is_edited_before_it_runs(commit: Commit) -> None:
    commit("")
    shutil.rmtree(trees.checkout() / ".git")
    seen: list[Path] = []

    def edit(root: Path) -> None:
        seen.append(root)
        (root / "attnbench" / "__init__.py").write_text("raise RuntimeError('edited')")

    with pytest.raises(BrokenTreeError, match="planted does not build: RuntimeError: edited"):
        trees.copy(label="planted", device="cpu", edit=edit).__enter__()
    assert [root.exists() for root in seen] == [False]


def test_outside_of_a_checkout_there_are_no_revisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attnbench, "__file__", str(tmp_path / "attnbench" / "__init__.py"))
    (tmp_path / "attnbench").mkdir()
    with pytest.raises(UserError, match="which is no git checkout of it, so there are no revisions"):
        trees.checkout()


def test_what_is_odd_about_two_sides_is_said(commit: Commit) -> None:
    commit("")
    assert trees.oddities("HEAD") == [], "no pyproject.toml is nothing to compare"
    commit('[project]\ndependencies = ["torch"]\n', file="pyproject.toml")
    commit("old = 1", file="attnbench/measure/clock.py")
    assert trees.oddities("HEAD") == []
    commit("new = 1", file="attnbench/measure/clock.py")
    commit('[project]\ndependencies = ["torch", "numpy"]\n', file="pyproject.toml")
    (trees.checkout() / "attnbench" / "kernel.py").write_text("")
    dirty, measuring, libraries = trees.oddities("HEAD~2")
    assert dirty == "the working tree has uncommitted changes, and they are part of the new side"
    assert "the sides do not measure alike (clock.py in attnbench/measure changed)" in measuring
    assert libraries.startswith("HEAD~2 declares other dependencies than the working tree")


def test_the_commits_of_a_search(commit: Commit) -> None:
    names = [commit(f"x = {n}", message=f"change {n}") for n in range(4)]
    found = bisecting.commits_between("HEAD~3", "main")
    assert [(each.name, each.subject) for each in found] == [(names[n], f"change {n}") for n in (1, 2, 3)]
    with pytest.raises(UserError, match="main is no earlier commit than HEAD~3"):
        bisecting.commits_between("main", "HEAD~3")
    with pytest.raises(UserError, match="nothing to search"):
        bisecting.commits_between("main", "main")


def test_a_worktree_is_gone_after_an_error(commit: Commit) -> None:
    commit("")
    seen: list[Path] = []

    def fail() -> None:
        with trees.worktree_of("main") as folder:
            assert (folder / "attnbench" / "__init__.py").exists()
            seen.append(folder)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [folder.exists() for folder in seen] == [False]
    assert len(_worktrees()) == 1
