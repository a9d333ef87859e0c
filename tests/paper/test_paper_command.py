"""`attnbench paper`: from recorded runs to pictures and tables, within a budget, and what it refuses."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from attnbench import store, sweeping
from attnbench.case import Case, Measurement, Status
from attnbench.executors import engines
from attnbench.executors.run_folder import RunFolder
from attnbench.models import records
from attnbench.models.records import TrainStep
from attnbench.models.running import Outcome, Run
from attnbench.paper import command, dot_panels, sources
from attnbench.paper.claims import Ratio
from attnbench.paper.figures import Figure, figures, find
from attnbench.paper.lines import Origin
from attnbench.paper.measured import Measured
from attnbench.paper.sheet import Sheet, mark_style, tick_text
from attnbench.paper.sittings import Stopwatch
from attnbench.paper.sources import Budget, Measuring, Taken, available, recorded
from attnbench.sweeps.layers import Overrides
from attnbench.sweeps.loader import load
from attnbench.sweeps.values import parse_sizes

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "h200"


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Any, ...]]:
    """`paper all` from the committed results."""
    out = tmp_path_factory.mktemp("paper")
    wanted = command.request("all", runs=[RESULTS], budget_min=None, out=out)
    done = command.reproduce(
        wanted, device="cpu", can_measure=False, console=Console(quiet=True), tell=lambda line: None
    )
    return out, done


def test_all_figures_render_from_committed_results(everything: tuple[Path, tuple[Any, ...]]) -> None:
    out, done = everything
    for each in done:
        assert (out / f"{each.figure.name}.md").is_file()
        drawable = any(len(line) for line in each.lines)
        assert bool(each.pictures) is drawable
        assert all(path.stat().st_size > 1000 for path in each.pictures)
    by_name = {each.figure.name: each for each in done}
    assert by_name["fig3"].device == "NVIDIA H200"
    assert {path.name for path in by_name["fig3"].pictures} == {
        "fig3.png", "fig3.svg", "fig3.log.png", "fig3.log.svg",
    }  # fmt: skip
    for name, each in by_name.items():  # those without a run show the published points, and say so
        if not each.device and each.pictures:
            assert each.sentence.startswith("published points alone: no run "), name


def test_the_summary_links_what_is_there_and_says_what_does_not_hold(
    everything: tuple[Path, tuple[Any, ...]],
) -> None:
    out, done = everything
    summary, page = (out / "README.md").read_text(), (out / "index.html").read_text()
    for each in done:
        assert f"[{each.figure.name}]({each.figure.name}.md)" in summary
        assert f'id="{each.figure.name}"' in page
        for said in each.failing:
            assert said in summary
    for picture in (path for each in done for path in each.pictures if path.suffix == ".png"):
        assert f'src="{picture.name}"' in page
    assert "<script" not in page
    judged = sum(len(each.deviations) for each in done)
    made = sum(row["claims"] for row in command.listing())
    assert judged > made
    said = f"The papers make {made:,}; one counts again for each setting that it was measured with."
    assert said in summary
    assert said in page


def test_points_of_another_source_are_called_so(everything: tuple[Path, tuple[Any, ...]]) -> None:
    out, _ = everything
    for name in ("fig3", "tnl-fig4"):
        assert (
            "Published: one A100-80G; the hollow points are of the authors' repository, a GPU that is not named, an "
            "A100 by its dates. Here: NVIDIA H200. That is other hardware."
        ) in (out / f"{name}.md").read_text()


def test_the_page_of_a_figure_has_claims_values_and_errata(everything: tuple[Path, tuple[Any, ...]]) -> None:
    out, _ = everything
    text = (out / "readme-memory.md").read_text()
    assert "all three measured xFormers" in text
    row = next(line for line in text.splitlines() if line.startswith("| 32,768 | 10.9 GiB"))
    assert "16.9 GiB" in row  # benchmarks/README.md
    assert "8.00 GiB (1.00×)" in row  # measured, over the corrected value
    assert "**Not stated" not in text
    assert "- Not stated: GPU" in text


def test_equal_lines_give_equal_pictures(everything: tuple[Path, tuple[Any, ...]], tmp_path: Path) -> None:
    out, _ = everything
    wanted = command.request("table1", runs=[RESULTS], budget_min=None, out=tmp_path)
    command.reproduce(
        wanted, device="cpu", can_measure=False, console=Console(quiet=True), tell=lambda line: None
    )
    for name in ("table1.png", "table1.svg"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_published_marks_are_hollow_and_measured_ones_solid() -> None:
    faces = {origin: mark_style(origin, colour="#112233", marker="o")["markerfacecolor"] for origin in Origin}
    assert faces == {Origin.PUBLISHED: "white", Origin.CORRECTED: "white", Origin.MEASURED: "#112233"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.05, "0.05"),
        (12.5, "12.5"),
        (2000, "2,000"),
        (20_000, "20k"),
        (2.5e6, "2.5M"),
        (2e8, "200M"),
    ],
    ids=str,
)
def test_a_tick_is_not_rounded(value: float, text: str) -> None:
    assert tick_text(value) == text


def test_each_measured_value_is_told_in_the_order_of_the_legend(
    everything: tuple[Path, tuple[Any, ...]],
) -> None:
    figure = find("tnl-fig5")
    (done,) = (each for each in everything[1] if each.figure.name == figure.name)
    sheet = Sheet(figure=figure, lines=tuple(reversed(done.lines)), remarks=())
    sizes = {panel.key: panel for panel in figure.panel}
    rows = {series.key: series for series in figure.series}
    legend = [edition for origin, edition in sheet.kinds if origin is Origin.MEASURED]
    values = {
        line.edition: line.at(512) or 0.0
        for line in done.lines
        if (line.origin, line.panel, line.series) == (Origin.MEASURED, "1B", "TNL")
    }
    assert len(legend) == len(values) == 2
    wanted = " / ".join(f"{values[edition] / 1e3:.1f} k" for edition in legend)
    assert dot_panels.values_text(sheet, sizes["1B"], rows["TNL"]) == wanted
    assert dot_panels.values_text(sheet, sizes["published"], rows["TNL"]) == "2.82 k"
    assert dot_panels.values_text(sheet, sizes["1B"], rows["Pythia"]) == ""


# ---------------------------------------------------------------- recorded runs


def test_of_a_case_that_two_folders_have_the_first_ones_counts(tmp_path: Path) -> None:
    def step(seq_len: int, rate: float, **more: Any) -> TrainStep:
        return TrainStep(
            case_id=f"N{seq_len}", model="tnl", size="1B", attention="lightning2", seq_len=seq_len, tokens_per_step=8,
            checkpointing="none", precision="bf16", gpus=1, status="ok", tokens_per_s=rate, device="H200", **more,
        )  # fmt: skip

    folders = []
    for name, rows in {"a": [step(1024, 1.0)], "b": [step(1024, 2.0), step(2048, 3.0)]}.items():
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        records.write(rows, folders[-1] / "train-step.parquet", kind=TrainStep, environment={})
    (line,) = recorded(find("table1"), folders).measured.lines
    assert (line.x.tolist(), line.value.tolist()) == ([1024, 2048], [1.0, 3.0])


# ---------------------------------------------------------------- the command line


def test_one_figure_prints_its_claims(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    run_path = str(RESULTS / "paper-fig3.parquet")
    code, out, _ = run("paper", "readme-memory", "--run", run_path, "-o", str(tmp_path), "--json")
    assert code == 0
    (found,) = json.loads(out)
    assert (found["figure"], found["device"], found["left"]) == ("readme-memory", "NVIDIA H200", [])
    assert {each["verdict"] for each in found["claims"]} == {
        "holds",
        "cannot be told",
    }  # no xFormers in that run
    code, out, _ = run("paper", "README-memory", "--run", run_path, "-o", str(tmp_path))
    assert code == 0
    assert "On NVIDIA H200 of 4 claims " in out
    assert "Here: NVIDIA H200. That is other hardware." in out


def test_without_a_gpu_and_a_run_the_published_points_stand_alone(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("with a GPU the sweep would run")
    code, out, _ = run("paper", "readme-speed", "-o", str(tmp_path))
    assert code == 0
    said = " ".join(out.split())
    assert "no GPU here, and no --run that holds it; --device cpu measures it on the processor." in said
    assert (tmp_path / "readme-speed.png").is_file()


def test_list_names_every_figure(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("paper", "list", "--json")
    rows = {row["figure"]: row for row in json.loads(out)}
    assert code == 0
    assert list(rows) == list(figures())
    assert rows["table1"]["published_values"] == 81 - 12
    assert rows["fig3"]["published_values"] == 0
    code, out, _ = run("paper", "list")
    assert "readme-memory" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fig33"], "unknown figure 'fig33'; did you mean 'fig3'?"),
        (["fig3", "--run", "nowhere"], "there is no results file or folder at nowhere"),
        (["fig3", "--gpu-budget", "0"], "--gpu-budget: expected minutes above 0, got 0"),
        (["fig3", "--gpu-budget", "5", "--run", "{h200}"], "leave --gpu-budget out"),
        (["fig3", "--launch", "graph", "--run", "{h200}"], "leave --launch out"),
        (["fig3", "--launch", "grph"], "unknown launch 'grph'; did you mean 'graph'?"),
        (["fig3", "--launch", "graph", "--device", "cpu"], "launch 'graph' needs a CUDA device"),
        (["all", "--run", "{h200}/quick.parquet"], "paper all takes folders of recorded runs"),
        (
            ["decode", "--run", "{h200}/quick.parquet"],
            "holds nothing of decode: it needs decode of lightning2,",
        ),
        (["table1", "--run", "{h200}/quick.parquet"], "expected train-step"),
    ],
    ids=[
        "typo",
        "no-run",
        "no-budget",
        "both",
        "launch-and-run",
        "launch-typo",
        "graph-on-cpu",
        "file-for-all",
        "other-run",
        "other-kind",
    ],
)
def test_bad_input_is_one_sentence(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, words: list[str], sentence: str
) -> None:
    code, out, err = run("paper", *(word.format(h200=RESULTS) for word in words), "-o", str(tmp_path))
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


# ---------------------------------------------------------------- the budget


class _Sweeping:
    """Stands in for `run_sweep`: a case takes `case_s` of a clock that only it moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, case_s: float) -> None:
        self.now, self.case_s, self.resumed = 0.0, case_s, []  # type: ignore[var-annotated]
        monkeypatch.setattr(sources, "now_s", lambda: self.now)

    def __call__(self, grid: Any, cases: Any, *, path: Path, resume: bool, enough: Any, **_: Any) -> Any:
        self.resumed.append(resume)
        (path / "shards").mkdir(parents=True, exist_ok=True)
        (path / "run.json").write_text('{"run_id": "played"}')
        done = {file.stem for file in (path / "shards").iterdir()}
        for case in cases:
            if case.case_id not in done:
                if enough():
                    break
                self.now += self.case_s
                (path / "shards" / f"{case.case_id}.parquet").touch()
                done.add(case.case_id)
        return SimpleNamespace(left=len(cases) - len(done), notes=())


def test_a_budget_is_split_over_invocations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "available", lambda figure, folder: Taken(measured=Measured(lines=())))
    sweeping = _Sweeping(monkeypatch, case_s=60.0)
    left = []
    for _ in range(4):
        measuring = Measuring(
            folder=tmp_path, device="cuda", budget=Budget(seconds=40 * 60, begun=sweeping.now),
            stopwatch=Stopwatch(folder=tmp_path), console=Console(quiet=True), words=(), sweep=sweeping,
        )  # fmt: skip
        left.append([str(each) for name in ("fig3", "tnl-fig4") for each in measuring.take(find(name)).left])
    # 48 cases of paper-fig3, which both figures need, and 16 of paper-tnl-fig4.
    of_both = "8 cases of paper-fig3"
    assert left == [[of_both, "16 cases of paper-tnl-fig4", of_both], [], [], []]
    assert sweeping.resumed == [False, True, False]
    assert sweeping.now == 64 * 60.0


def test_a_run_that_came_without_its_shards_is_not_measured_again(tmp_path: Path) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("everything is there")

    run, file = tmp_path / "paper-fig3", RESULTS / "paper-fig3.parquet"
    table = store.read(file)
    (run_id,) = set(table["run_id"].to_pylist())
    run.mkdir()
    (run / "run.json").write_text(json.dumps(store.records(table)[run_id]))
    shutil.copy(file, run / "results.parquet")
    taken = Measuring(
        folder=tmp_path, device="cuda", budget=Budget(seconds=None), stopwatch=Stopwatch(folder=tmp_path),
        console=Console(quiet=True), words=(), sweep=refused,
    ).take(find("fig3"))  # fmt: skip
    assert taken.left == ()
    assert sum(map(len, taken.measured.lines)) > 48


def test_how_far_it_has_come_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "available", lambda figure, folder: Taken(measured=Measured(lines=())))
    sweeping = _Sweeping(monkeypatch, case_s=2.0)

    def model(words: Sequence[str]) -> tuple[int, str]:
        sweeping.now += 100.0
        return 0, json.dumps({"left": 0})

    def told(*names: str, seconds: float | None = None) -> list[str]:
        measuring = Measuring(
            folder=tmp_path, device="cuda", budget=Budget(seconds=seconds, begun=sweeping.now), model=model,
            stopwatch=Stopwatch(folder=tmp_path), console=Console(quiet=True), words=(), sweep=sweeping,
            figures=[find(name) for name in names],
        )  # fmt: skip
        for figure in measuring.figures:
            measuring.take(figure)
        return capsys.readouterr().err.splitlines()

    assert told("fig3") == ["paper-fig3: 48 cases to measure"]  # one alone is not counted
    more = find("table2").record_by
    assert told("fig3", "readme-speed", "table2") == [
        "2 of 3: paper-readme: 70 cases to measure",
        f"3 of 3: attnbench {more[0]} (2 min 20 s so far)",
    ]
    assert told("fig3", "table2", seconds=5.0) == []  # too little for a model, which is not begun


def test_calls_of_sweeps_are_launched_as_asked_and_what_happened_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "available", lambda figure, folder: Taken(measured=Measured(lines=())))
    launches = []

    def sweep(grid: Any, cases: Any, **_: Any) -> SimpleNamespace:
        launches.append(str(grid.protocol.launch))
        return SimpleNamespace(left=0, notes=("A GPU was lost.",))

    for launch in (None, "graph"):
        Measuring(
            folder=tmp_path, device="cuda", budget=Budget(seconds=None), stopwatch=Stopwatch(folder=tmp_path),
            console=Console(quiet=True), words=(), sweep=sweep, launch=launch,
        ).take(find("fig3"))  # fmt: skip
    assert launches == ["eager", "graph"]
    assert capsys.readouterr().err.count("paper-fig3: A GPU was lost.\n") == 2


def test_whole_models_are_recorded_in_what_is_left_of_the_budget(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[list[str]] = []
    clock = [0.0]
    monkeypatch.setattr(sources, "now_s", lambda: clock[0])

    def model(words: Sequence[str]) -> tuple[int, str]:
        calls.append(list(words))
        clock[0] += 60.0
        return (0, json.dumps({"left": 5})) if len(calls) == 1 else (2, "")

    def measuring(minutes: float, *, claims_alone: bool) -> Measuring:
        return Measuring(
            folder=tmp_path, device="cuda", budget=Budget(seconds=60 * minutes, begun=clock[0]),
            stopwatch=Stopwatch(folder=tmp_path), console=Console(quiet=True), words=(), model=model,
            claims_alone=claims_alone,
        )  # fmt: skip

    figure = find("table1")
    first, *others = figure.record_by
    taken = measuring(1.0, claims_alone=True).take(figure)
    assert [str(each) for each in taken.left] == [f"5 cases of {first}", *others]  # the others were not begun
    assert calls == [[*shlex.split(first), "--out", str(tmp_path / "models"), "--json", "--minutes", "1.00"]]
    taken = measuring(5.0, claims_alone=True).take(figure)
    assert taken.left == ()
    assert taken.failures == tuple(f"attnbench {each} ended with exit code 2" for each in figure.record_by)
    taken = measuring(60.0, claims_alone=False).take(figure)
    assert len(taken.failures) == len((*figure.record_by, *figure.record_more)) > len(figure.record_by)


def test_all_figures_measure_what_claims_need_and_one_the_lengths_between_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[str, bool] = {}

    def take(measuring: Measuring, figure: Figure) -> Taken:
        asked[figure.name] = measuring.claims_alone
        return available(figure, tmp_path / "nothing")

    monkeypatch.setattr(Measuring, "take", take)
    monkeypatch.setattr("attnbench.paper.command._reproduce", lambda figure, *_, **__: figure)
    monkeypatch.setattr("attnbench.paper.command.page", SimpleNamespace(
        write=lambda *_: None, summary_markdown=lambda *_, **__: "", summary_html=lambda *_, **__: "",
    ))  # fmt: skip
    for name in ("all", "table1"):
        wanted = command.request(name, runs=[], budget_min=None, out=tmp_path)
        command.reproduce(
            wanted, device="cuda", can_measure=True, console=Console(quiet=True), tell=lambda _: None
        )
        assert asked["table1"] == (name == "all")


@pytest.mark.parametrize(
    "words",
    [each for figure in figures().values() for each in (*figure.record_by, *figure.record_more)],
)
def test_what_records_whole_models_is_a_command_that_asks_for_cases(
    words: str, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def measure(_: Any, requests: Sequence[Any]) -> Any:
        asked.extend(request.case_id for request in requests)
        return Outcome(rows=[], missing=[], left=0)

    monkeypatch.setattr(Run, "measure", measure)
    code, _, err = run(*shlex.split(words), "--device", "cpu", "--out", str(tmp_path))
    assert (code, err) == (3, "")  # nothing was measured
    assert len(asked) == len(set(asked)) > 0


def _lengths(commands: Iterable[str], *, size: str, attention: str) -> set[int]:
    """Those that commands of `model train-step` measure of a model."""
    found: set[int] = set()
    for words in map(shlex.split, commands):
        given = {flag: value.split(",") for flag, value in pairwise(words) if flag.startswith("-")}
        if size in given["--size"] and attention in given.get("-a", [attention]):
            found |= set(parse_sizes(given["--seq-len"], axis="--seq-len"))
    return found


@pytest.mark.parametrize(
    "claim", [c for c in find("table1").claim if isinstance(c, Ratio)], ids=lambda c: c.panels[0]
)
def test_a_ratio_is_measured_at_the_length_that_its_claim_names(claim: Ratio) -> None:
    figure = find("table1")
    (size,) = claim.panels
    commands = (
        figure.record_by if size != "3B" else figure.record_more
    )  # the largest takes too long for all figures
    for attention in ("lightning2", "flash2"):
        assert claim.at in _lengths(commands, size=size, attention=attention)


def test_how_long_it_measured_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = [1000.0]

    def take(measuring: Measuring, figure: Figure) -> Taken:
        clock[0] += 75.0
        return available(figure, tmp_path / "nothing")

    monkeypatch.setattr("attnbench.paper.sources.now_s", lambda: clock[0])
    monkeypatch.setattr(
        "attnbench.paper.command.Budget", lambda seconds: Budget(seconds=seconds, begun=1000.0)
    )
    monkeypatch.setattr(Measuring, "take", take)
    told: list[str] = []
    for can_measure in (True, False):
        wanted = command.request("readme-speed", runs=[], budget_min=None, out=tmp_path)
        command.reproduce(
            wanted, device="cpu", can_measure=can_measure, console=Console(quiet=True), tell=told.append
        )
    assert told == ["measured for 1 min 15 s; drawing", "drawing readme-speed", "drawing readme-speed"]


class _Executor:
    """Stands in for the local executor: every case is done in no time."""

    def __init__(self, *, folder: RunFolder, workers: object) -> None:
        self.folder = folder
        self.notes: list[str] = []

    def run(self, cases: Iterable[Case], **_: Any) -> None:
        for case in cases:
            if case.case_id not in self.folder.done():
                self.folder.keep(store.row(Measurement(case=case, status=Status.OK), run_id="a"))


def test_a_sweep_ends_when_it_is_enough_and_goes_on_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engines, "LocalExecutor", _Executor)
    grid = load("quick", device="cpu", overrides=Overrides(seq_len=["256,512"], workload=["fwd"]))
    cases = grid.cases()[:4]

    def sweep(answers: Sequence[bool], *, resume: bool) -> int:
        asked = iter(answers)
        outcome = sweeping.run_sweep(
            grid, cases, path=tmp_path / "run", resume=resume, command=(), console=Console(quiet=True),
            enough=lambda: next(asked),
        )  # fmt: skip
        assert len(outcome.folder.done()) == len(cases) - outcome.left
        return outcome.left

    assert sweep([True], resume=False) == 4  # enough before the first: there is nothing to merge
    assert sweep([False, False, True], resume=True) == 2
    assert sweep([False] * 4, resume=True) == 0
