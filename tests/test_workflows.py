"""Workflows and how-tos: what they call is there, and actionlint has nothing to say."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from attnbench.cli import app

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCS = sorted((ROOT / "docs").glob("*.md"))
pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="installed, not a checkout")


def _name(path: Path) -> str:
    return path.name


def _calls(text: str) -> list[list[str]]:
    """The words after `attnbench` where a line, or a span of code, calls it."""
    lines = re.findall(r"(?m)^\s*(?:- run: |run: )?(?:\.venv/bin/)?attnbench ([a-z].*)$", text)
    spans = re.findall(r"`attnbench ([a-z][^`]*)`", text)
    return [shlex.split(call.split(" > ")[0], comments=True) for call in lines + spans]


def _options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("path", [*WORKFLOWS, *DOCS], ids=_name)
def test_commands_and_their_options_exist(path: Path) -> None:
    calls = _calls(path.read_text(encoding="utf-8"))
    commands = typer.main.get_group(app).commands
    for name, *arguments in calls:
        assert name in commands
        used = {argument.split("=")[0] for argument in arguments if argument.startswith("-")}
        assert used <= _options(commands[name]), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=_name)
def test_what_is_made_has_a_rule(path: Path) -> None:
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    asked = re.findall(r"run: make (\S+)", path.read_text(encoding="utf-8"))
    assert asked
    for target in asked:
        variable = target.replace(".venv/.installed", "$(INSTALLED)")
        assert re.search(rf"(?m)^{re.escape(variable)}:", rules), target


def test_the_gate_measures_on_a_gpu_runner_and_keeps_what_it_measured() -> None:
    text = (ROOT / ".github" / "workflows" / "gpu.yml").read_text(encoding="utf-8")
    assert 'check ci --against "$AGAINST"' in text
    assert "self-hosted" in text
    assert "GITHUB_STEP_SUMMARY" in text
    assert "upload-artifact" in text
    assert "head.repo.full_name == github.repository" in text  # no code of strangers on one's own machine


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="actionlint is not installed")
def test_actionlint() -> None:
    done = subprocess.run(
        ["actionlint", *map(str, WORKFLOWS)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout
