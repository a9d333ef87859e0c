"""The report as a text: what is in it, what keeps it safe and small, and what a run without much in it yields."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from attnbench import store
from attnbench.case import Case, Status, Workload
from attnbench.cli import app
from attnbench.errors import UserError
from attnbench.plots import plot_roofline, plot_run
from attnbench.plots.looks import STYLES
from attnbench.report import command, looks
from attnbench.words import without_folders
from tests.reports import HOSTILE, RECORD, grid, measured, written

ROOT = Path(__file__).parent.parent
RECORDED = sorted((ROOT / "results" / "h200").glob("*.parquet"))
EVERY_STATUS = {
    ("slow", 128 << n): status for n, status in enumerate(s for s in Status if s is not Status.OK)
}


class _Page(HTMLParser):
    """Elements by name, with their attributes, and the text of scripts by id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self._script: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs).get("id") or "code"

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] = data

    def handle_endtag(self, tag: str) -> None:
        self._script = None


def reported(path: Path, *bases: Path, **how: Any) -> _Page:
    return _Page(command.report([path], bases, figures=False, **how).html)


def values(data: dict[str, Any], name: str) -> list[Any]:
    """A column of the page's data, whichever way it is kept."""
    if name in data["numbers"]:
        return list(data["numbers"][name])
    coded = data["texts"][name]
    return [None if at < 0 else coded["values"][at] for at in coded["at"]]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_run(path: Path) -> None:
    """Every row is there with its numbers to five digits, and the page is small."""
    frame = store.load_results(path)
    html = command.report([path], figures=False).html
    data = json.loads(_Page(html).scripts["data"])
    assert data["rows"] == len(frame)
    assert values(data, "status") == frame["status"].tolist()
    times = np.array([np.nan if v is None else v for v in values(data, "median_ms")], dtype=float)
    np.testing.assert_allclose(times, frame["median_ms"].to_numpy(dtype=float), rtol=1e-4)
    peak = [None if pd.isna(value) else int(value) for value in frame["peak_bytes"]]
    assert values(data, "peak_bytes") == peak  # counts are whole
    assert len(html) < 500_000


def test_nothing_is_loaded_and_only_our_script_runs(tmp_path: Path) -> None:
    page = reported(written(tmp_path / "run.parquet", grid(["lightning2"])))
    assert not {"img", "iframe", "object", "embed", "video", "base"} & {tag for tag, _ in page.tags}
    links = [attributes.get("href") or attributes.get("src") for _, attributes in page.tags]
    assert {link for link in links if link and not link.startswith("#")} == {"data:,"}
    [policy] = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.scripts["code"].encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")


def test_html_in_names_stays_text(tmp_path: Path) -> None:
    cases = [
        *grid([HOSTILE, "lightning2"]),
        measured(grid([HOSTILE])[0].case, status=Status.ERROR, reason=HOSTILE),
    ]
    record = {**RECORD, "sweep": {"name": HOSTILE, "description": HOSTILE}}
    path = written(tmp_path / "run.parquet", cases, run=HOSTILE, record=record)
    page = reported(path)
    assert not [tag for tag, _ in page.tags if tag in ("img", "b", "i")]
    data = json.loads(page.scripts["data"])
    assert set(values(data, "mechanism")) == {HOSTILE, "lightning2"}
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 3


def test_two_thousand_rows_stay_below_a_million_bytes(tmp_path: Path) -> None:
    """With a reason of its own in every fifth row, and figures as far as they fit."""
    mechanisms = [f"mechanism-{number}" for number in range(10)]
    failing = {(name, 1 << n): Status.OOM for name in mechanisms[:5] for n in (15, 16, 17)}
    cases = grid(
        mechanisms,
        lengths=[1 << n for n in range(8, 18)],
        heads=(4, 8, 16, 32, 64),
        dtypes=("bf16", "fp16"),
        failing=failing,
    )
    assert len(cases) == 2000
    path = written(tmp_path / "run.parquet", cases)
    html = command.report([path], figures=False).html
    assert len(html.encode()) + command.FIGURE_BYTES < 1_000_000


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("attnbench sweep quick -o /home/ada/runs/mine", "attnbench sweep quick -o …/mine"),
        ("attnbench sweep my/grid.toml --out=/mnt/x/y", "attnbench sweep my/grid.toml --out=…/y"),
        (
            "CUDA_HOME /usr/local/cuda, TRITON_CACHE_DIR /mnt/ada/tc",
            "CUDA_HOME …/cuda, TRITON_CACHE_DIR …/tc",
        ),
        ("protocol 1/2, runs/mine, /x", "protocol 1/2, runs/mine, /x"),
    ],
    ids=["folder", "option", "variables", "no path from the root"],
)
def test_a_page_that_is_handed_on_tells_no_folders(told: str, shown: str) -> None:
    assert without_folders(told) == shown


def test_figures_are_the_files_of_the_command_line(tmp_path: Path) -> None:
    path = written(
        tmp_path / "run.parquet", grid(["lightning2", "sdpa"], lengths=(128, 256), workloads=("fwd",))
    )
    frame = store.load_results(path)
    files = [draw(frame, tmp_path / "figures", formats=("svg",)) for draw in (plot_run, plot_roofline)]
    made = command.report([path])
    kept = json.loads(_Page(made.html).scripts["figures"])
    assert made.left_out == ()
    assert set(kept) == {file.name for each in files for file in each}
    for file in (file for each in files for file in each):
        assert gzip.decompress(base64.b64decode(kept[file.name])).decode() == file.read_text()


def test_figures_that_do_not_fit_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "FIGURE_BYTES", 25_000)
    path = written(tmp_path / "run.parquet", grid(["lightning2"], lengths=(128, 256), workloads=("fwd",)))
    done = CliRunner().invoke(app, ["report", str(path), "-o", str(tmp_path / "it.html"), "--json"])
    found = json.loads(done.stdout)
    kept = json.loads(_Page((tmp_path / "it.html").read_text()).scripts["figures"])
    assert found["left_out"]
    assert set(kept) & set(found["left_out"]) == set()
    assert len(kept) + len(found["left_out"]) == 4


def test_the_answer_of_the_page_is_printed(tmp_path: Path) -> None:
    path = written(tmp_path / "run.parquet", grid(["lightning2"], lengths=(128, 256), workloads=("fwd",)))
    words = ["report", str(path), "--no-figures", "-o", str(tmp_path / "it.html")]
    printed = CliRunner().invoke(app, words).stdout.splitlines()
    answer = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)["answer"]
    assert printed == [*answer, f"Report: {tmp_path / 'it.html'}"]
    assert answer[0] == "Forward, lightning2 is fastest from 128 to 256 tokens (nothing else was measured)."
    assert all(said in (tmp_path / "it.html").read_text() for said in answer)


def test_crossings_are_in_the_answer_and_in_a_table() -> None:
    """The second sentence says where the lead changes hands; the table has every pair."""
    html = command.report([ROOT / "results" / "h200" / "crossover.parquet"], figures=False).html
    answer = re.findall(r'<p class="answer">(.*?)</p>', html)[1]
    assert answer.startswith(
        "Forward, lightning2 overtakes sdpa-cudnn between 256 and 512 tokens (about 320), and fla-simple-gla is"
    )
    forward = html[html.index("<summary>Forward, 32k tokens") : html.index("<summary>Backward, 32k tokens")]
    cells = re.sub(r"<[^>]*>", " ", forward)
    assert re.search(r"lightning2\s+flash2\s+128 to 256\s+160\s", cells)
    assert re.search(r"sdpa-cudnn\s+flash2\s+128 or earlier", cells)


def test_equal_results_give_equal_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "run.parquet", grid(["lightning2", "sdpa"]))
    assert command.report([path], figures=False) == command.report([path], figures=False)


# --- head -----------------------------------------------------------------------------------------------------


def answers(path: Path, *bases: Path, **how: Any) -> list[str]:
    html = command.report([path], bases, figures=False, **how).html
    return re.findall(r'<p class="answer">(.*?)</p>', html)


def test_the_answer_names_the_fastest_and_the_flattest(tmp_path: Path) -> None:
    """Of mechanisms whose time goes with the length of their name, the shortest is fastest, and all are flat."""
    path = written(tmp_path / "run.parquet", grid(["aa", "bbbb"]))
    first, second = answers(path)
    assert first == "Forward and backward, aa is fastest from 128 to 1,024 tokens."
    assert second.startswith("Forward, aa is the flattest: its tokens/s stay within a factor of 1.00")


def test_many_curves_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "run.parquet", grid(["aa", "bbbb"], heads=(1, 2, 4), workloads=("fwd",)))
    assert answers(path)[0] == "Forward, aa is fastest at 12 of 12 points."


def test_a_comparison_is_the_second_sentence(tmp_path: Path) -> None:
    base = written(tmp_path / "base.parquet", grid(["aa", "bbbb"]), run="one")
    new = written(
        tmp_path / "new.parquet", grid(["aa", "bbbb"], failing={("aa", 128): Status.OOM}), run="two"
    )
    sentence = answers(new, base)[1]
    assert "2 of 16 cases are broken" in sentence
    html = command.report([new], [base], figures=False, noise=0.01).html
    assert html.count('class="verdict-broken"') == 2
    assert 'class="span"' in html  # an interval is drawn


# --- runs with little in them ---------------------------------------------------------------------------------


def test_no_case_came_out_ok(tmp_path: Path) -> None:
    cases = [measured(each.case, status=Status.OOM) for each in grid(["lightning2"])]
    path = written(tmp_path / "run.parquet", cases)
    done = CliRunner().invoke(app, ["report", str(path)])
    assert done.exit_code == 0, done.output
    html = (tmp_path / "run.html").read_text()
    assert "Nothing can be said of speed: no case came out ok." in html
    assert json.loads(_Page(html).scripts["data"])["charts"] == []


def test_a_single_point(tmp_path: Path) -> None:
    path = written(tmp_path / "run.parquet", grid(["lightning2"], lengths=(128,), workloads=("fwd",)))
    assert answers(path)[0] == "Forward, lightning2 is fastest at 128 tokens (nothing else was measured)."


def test_every_status_and_unknown_telemetry(tmp_path: Path) -> None:
    cases = grid(["lightning2", "slow"], lengths=[128 << n for n in range(len(Status))], failing=EVERY_STATUS)
    path = written(tmp_path / "run.parquet", cases)
    frame = store.load_results(path)
    frame["power_w"] = float("nan")
    from attnbench.report.data import document

    data = document(frame, tolerances={})
    assert "power_w" not in data["numbers"]
    json.dumps(data, allow_nan=False)
    assert set(values(data, "status")) == {str(status) for status in Status}


def test_decode_has_a_chart_of_its_own_beside_other_workloads(tmp_path: Path) -> None:
    decode = grid(["lightning2"], workloads=("decode",))
    alone = reported(written(tmp_path / "alone.parquet", decode))
    beside = reported(written(tmp_path / "beside.parquet", decode + grid(["lightning2"])))
    keys = [[c["key"] for c in json.loads(p.scripts["data"])["charts"]] for p in (alone, beside)]
    assert "step_ms" not in keys[0]
    assert "step_ms" in keys[1]


def test_windows_of_a_mechanism_are_lines_of_their_own(tmp_path: Path) -> None:
    cases = [
        measured(dataclasses.replace(each.case, window=window))
        for each in grid(["lightning2"], workloads=("fwd",))
        for window in (64, 128)
    ]
    data = json.loads(reported(written(tmp_path / "run.parquet", cases)).scripts["data"])
    assert {look["name"] for look in data["mechanisms"]} == {"lightning2 W64", "lightning2 W128"}
    assert set(values(data, "line")) == {"lightning2 W64", "lightning2 W128"}
    assert values(data, "window") == [each.case.window for each in cases]


def test_energy_per_token_is_that_of_the_row(tmp_path: Path) -> None:
    """0.25 J for a call of 2 x 128 tokens: 976.56 J for a million."""
    path = written(tmp_path / "run.parquet", grid(["lightning2"], lengths=(128,), workloads=("fwd",)))
    data = json.loads(reported(path).scripts["data"])
    assert values(data, "joules_per_mtok") == [pytest.approx(0.25 / 256 * 1e6, rel=1e-4)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "there is no results file or folder at nowhere"),
        (["{run}", "nowhere"], "there is no results file or folder at nowhere"),
        (["{empty}"], "holds no row: there is nothing to report"),
        (["{run}", "{other}"], "base and new have no case in common"),
        (["{run}", "{run}", "--noise", "0.01"], "--noise expects a percentage"),
        (["{run}", "{run}", "--threshold", "3"], "--threshold expects a percentage"),
        (["{run}", "--no-figures", "-o", "{run}/x.html"], "cannot write"),
    ],
    ids=["no run", "no base", "empty", "foreign base", "noise", "threshold", "out"],
)
def test_bad_input_is_one_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    paths = {
        "run": written(tmp_path / "run.parquet", grid(["lightning2"])),
        "other": written(tmp_path / "other.parquet", grid(["sdpa"])),
        "empty": written(tmp_path / "empty.parquet", []),
    }
    done = CliRunner().invoke(app, ["report", *(each.format(**paths) for each in arguments)])
    assert isinstance(done.exception, UserError)
    assert sentence in str(done.exception)
    assert "\n" not in str(done.exception)


# --- looks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", [*STYLES, "one of yours"])
def test_lines_stand_out_from_either_ground(mechanism: str) -> None:
    look = looks.look(mechanism)
    assert looks.contrast(look["dark"], looks.DARK_GROUND) >= 4.5
    assert (
        looks.contrast(look["light"], "#FFFFFF") >= 1.9
    )  # as in the figures: dashes and markers tell apart too
    assert re.fullmatch(r"[MLQCZ0-9eE .+-]+", look["marker"])


def test_contrast_is_that_of_the_standard() -> None:
    assert looks.contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert looks.contrast("#777777", "#FFFFFF") == pytest.approx(4.48, abs=0.01)


def test_names_of_cases_can_be_told_from_their_parts(tmp_path: Path) -> None:
    """The page has no column of names: it puts them together, with what is unusual in a shape."""
    odd = Case(
        mechanism="m", workload=Workload.FWD, batch=1, heads=4, kv_heads=2, seq_len=7, head_dim=16, value_dim=32,
        dtype="fp16", causal=False,
    )  # fmt: skip
    data = json.loads(reported(written(tmp_path / "run.parquet", [measured(odd)])).scripts["data"])
    parts = [values(data, name)[0] for name in ("mechanism", "workload", "shape_id", "dtype")]
    assert ".".join(parts) == odd.case_id


@pytest.mark.parametrize(
    ("name", "manner"),
    [
        ("constant-speed", "on NVIDIA H200."),
        ("decode", "on NVIDIA H200, as CUDA graphs."),
        ("decode-eager", "on NVIDIA H200, with a warm L2."),
    ],
)
def test_what_was_asked_says_how_calls_were_made_where_that_is_unusual(name: str, manner: str) -> None:
    html = command.report([ROOT / "results" / "h200" / f"{name}.parquet"], figures=False).html
    assert f"{manner}</p>" in html
