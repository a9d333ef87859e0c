"""The whole gate with real processes: a slow-down that is planted in a commit is named, and nothing beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import attnbench
from attnbench import load_results
from attnbench.executors.lock import LOCK_FOLDER_VARIABLE
from attnbench.gate.noise import FOLDER_VARIABLE

SWEEP = """
mechanism = ["linear-quadratic", "linear-cumsum"]
workload = ["fwd"]
dtype = ["fp32"]
shapes = [[1, 1, 16, 16]]
[protocol]
cache = "hot"
min_samples = 5
max_samples = 5
warmup_s = 0
"""

SLOW = """

def _slow(of):
    def slower(*given, **named):
        import time
        time.sleep({seconds})
        return of(*given, **named)
    return slower


{function} = _slow({function})
"""


def _slow_down(root: Path, function: str, *, seconds: float) -> None:
    """Sleep before each call of the baseline of that name."""
    path = root / "attnbench" / "baselines" / f"{function}.py"
    path.write_text(path.read_text() + SLOW.format(function=function, seconds=seconds))


def _commit(root: Path) -> None:
    for words in (["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "x"]):
        subprocess.run(["git", "-C", str(root), *words], check=True)


def test_a_planted_commit_is_found_and_named(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(attnbench.__file__).parent, root / "attnbench", ignore=ignored)
    (root / "pyproject.toml").write_text('[project]\ndependencies = ["torch"]\n')
    subprocess.run(["git", "init", "-q", "-b", "main", str(root)], check=True)
    for function in ("linear_quadratic", "linear_cumsum"):  # no busy machine doubles a time as long as this
        _slow_down(root, function, seconds=0.03)
    _commit(root)
    _slow_down(root, "linear_quadratic", seconds=0.09)
    _commit(root)
    (tmp_path / "tiny.toml").write_text(SWEEP)
    done = subprocess.run(
        [sys.executable, "-m", "attnbench", "check", "../tiny.toml", "--against", "HEAD~1", "--processes", "2",
         "--runs", "../runs", "--format", "json", "--threshold", "90%"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", LOCK_FOLDER_VARIABLE: str(tmp_path),
             FOLDER_VARIABLE: str(tmp_path)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["regressions"] == ["linear-quadratic.fwd.B1-H1-N16-D16.fp32"]
    assert any(text.startswith("commit: ") for text in report["sentences"])
    rows = load_results(tmp_path / "runs" / "results.parquet")
    assert list(rows.groupby("run_id").size()) == [2] * 4
    assert rows["median_ms"].notna().all()
    for number, proved in ((1, True), (2, False)):
        runs = [run for run, record in rows.attrs["runs"].items() if record["gate"]["number"] == number]
        part = rows[rows["run_id"].isin(runs)]
        assert set(part["kernels"].notna()) == set(part["peak_bytes"].notna()) == {proved}
    listed = subprocess.run(["git", "-C", str(root), "worktree", "list"], capture_output=True, text=True)
    assert len(listed.stdout.splitlines()) == 1, "the revision's worktree is gone"
