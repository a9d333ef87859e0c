"""The roofline figure: what is drawn, from which numbers, and when there is nothing to draw."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from typer.testing import CliRunner

from attnbench.case import Status
from attnbench.cli import app
from attnbench.errors import UserError
from attnbench.places import highest_ceilings
from attnbench.plots import plot_roofline, roofline
from attnbench.plots.roofline import Roof
from attnbench.store import load_results
from tests.reports import RECORD, grid, measured, written

positive = st.floats(1e-3, 1e6)


@given(copy=positive, rate=positive, intensity=positive)
def test_the_bound_is_the_lower_of_both(copy: float, rate: float, intensity: float) -> None:
    """Moving 1 / intensity bytes for a FLOP takes as long as it takes; the two meet at the knee."""
    roof = Roof(dtype="bf16", copy_gbps=copy, matmul_tflops=rate)
    flops = 1e12
    seconds = max(flops / intensity / (copy * 1e9), flops / (rate * 1e12))
    assert float(roof.at(intensity)) == pytest.approx(flops / seconds / 1e12)
    assert float(roof.at(roof.knee)) == pytest.approx(rate)
    assert roof.knee * copy * 1e-3 == pytest.approx(rate)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures by file name, instead of files."""
    found: dict[str, Figure] = {}

    def keep(figure: Figure, path: Path) -> Path:
        found[path.name] = figure
        return path

    monkeypatch.setattr(roofline, "save", keep)
    return found


def xy(line: Line2D) -> list[tuple[float, float]]:
    """The points of a line."""
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def test_points_are_rates_over_intensity(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    """40 + log2(N) TFLOP/s at 1,000 GB/s, twice over two runs, and one that is not ok."""
    failing = {("sdpa", 256): Status.OOM}
    cases = grid(["lightning2", "sdpa"], lengths=(128, 256), workloads=("fwd",), failing=failing)
    paths = [written(tmp_path / f"{run}.parquet", cases, run=run) for run in ("one", "two")]
    plot_roofline(load_results(paths), tmp_path, formats=("svg",))
    [axes] = drawn["roofline.fwd.svg"].axes
    device = load_results(paths)["device"].iloc[0]
    assert any(f"{device}; ceilings" in text.get_text() for text in drawn["roofline.fwd.svg"].texts)
    roof, *marks = axes.lines
    points = [point for line in marks for point in xy(line)]
    assert points == [pytest.approx((rate, rate)) for rate in (47, 47, 48)]
    x, y = zip(*xy(roof), strict=True)
    assert max(y) == 800
    assert y[0] == pytest.approx(x[0] * 4.0)  # 4,000 GB/s
    low, high = axes.get_xlim()
    assert low < 47 < 48 < 200 < high  # the knee is in the picture


def test_a_file_for_each_workload_and_the_same_bytes_again(tmp_path: Path) -> None:
    path = written(tmp_path / "run.parquet", grid(["lightning2"], lengths=(128,)))
    made = [plot_roofline(load_results(path), tmp_path / name, formats=("svg",)) for name in "ab"]
    assert [file.name for file in made[0]] == ["roofline.fwd.svg", "roofline.bwd.svg"]
    assert [file.read_bytes() for file in made[0]] == [file.read_bytes() for file in made[1]]


def test_from_the_command_line(tmp_path: Path) -> None:
    path = written(tmp_path / "run.parquet", grid(["lightning2"], lengths=(128,), workloads=("fwd",)))
    done = CliRunner().invoke(app, ["roofline", str(path), "--json"])
    assert done.exit_code == 0, done.output
    files = [Path(file) for file in json.loads(done.stdout)["figures"]]
    assert [file.name for file in files] == ["roofline.fwd.png", "roofline.fwd.svg"]
    assert all(file.parent == tmp_path / "figures" and file.stat().st_size > 1000 for file in files)


def test_how_near_each_comes_is_told_and_counted(tmp_path: Path) -> None:
    run = Path(__file__).parents[1] / "results" / "h200" / "kernels.parquet"
    words = ["roofline", str(run), "-o", str(tmp_path)]
    lines = CliRunner().invoke(app, words).stdout.splitlines()
    shares = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)["shares"]
    mine = {
        s["shape"]: s["share"] for s in shares if (s["workload"], s["mechanism"]) == ("fwd", "lightning2")
    }
    frame = load_results(run)
    rows = frame[
        (frame["mechanism"] == "lightning2") & (frame["workload"] == "fwd") & (frame["status"] == "ok")
    ]
    assert sorted(mine.values()) == pytest.approx(sorted(rows["roofline"]))
    least, most = min(mine, key=mine.__getitem__), max(mine, key=mine.__getitem__)
    mean = statistics.geometric_mean(mine.values())
    assert lines[0] == (
        f"Forward: lightning2 reaches {mean:.0%} of its bound, the geometric mean of {len(mine)} cases, "
        f"{mine[least]:.0%} at {least} to {mine[most]:.0%} at {most}."
    )
    assert [line.split(":")[0] for line in lines[:-2]] == ["Forward"] * 9 + ["Backward"] * 9
    assert lines[-1] == f"Figures: {tmp_path} (4 files)"


def _no_ceilings() -> dict[str, Any]:
    return {**RECORD, "ceilings": None}


@pytest.mark.parametrize(
    ("record", "status", "sentence"),
    [
        (_no_ceilings(), Status.OK, "no run recorded the ceilings of its device for these dtypes"),
        (dict(RECORD), Status.OOM, "no case came out ok with rates"),
    ],
    ids=["ceilings", "rates"],
)
def test_nothing_to_draw(tmp_path: Path, record: dict[str, Any], status: Status, sentence: str) -> None:
    cases = [measured(each.case, status=status) for each in grid(["lightning2"])]
    path = written(tmp_path / "run.parquet", cases, record=record)
    with pytest.raises(UserError, match=f"^there is no roofline to draw: {sentence}"):
        plot_roofline(load_results(path), tmp_path)


def test_a_recorded_run_stays_below_its_roof(drawn: dict[str, Figure], tmp_path: Path) -> None:
    """On the H200 no call beats its bound, beyond what a ceiling's own measurement is off."""
    root = Path(__file__).parent.parent
    frame = load_results(root / "results" / "h200" / "constant-speed.parquet")
    plot_roofline(frame, tmp_path, formats=("svg",))
    for figure in drawn.values():
        roof, *marks = figure.axes[0].lines
        (first, least), *_, (_, top) = xy(roof)
        for intensity, rate in (point for line in marks for point in xy(line)):
            assert 0 < rate < 1.02 * min(intensity * least / first, top)


def test_ceilings_of_one_model_measured_twice_are_the_highest() -> None:
    first = {"copy_gbps": 4000.0, "matmul_tflops": {"bf16": 790.0, "fp16": 740.0}}
    second = {"copy_gbps": 3900.0, "matmul_tflops": {"bf16": 800.0, "fp32": 50.0}}
    assert highest_ceilings([first, second]) == {
        "copy_gbps": 4000.0,
        "matmul_tflops": {"bf16": 800.0, "fp16": 740.0, "fp32": 50.0},
    }
    assert highest_ceilings([]) == {}
