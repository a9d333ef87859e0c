"""README is true: the output that it shows is what the command prints, its commands exist, its links lead somewhere."""

from __future__ import annotations

import io
import json
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from attnbench import load_results, summary
from attnbench.cli import app
from attnbench.models.records import Inference, TrainStep, kind_of, read
from attnbench.paper.sittings import sittings, took_table, words
from attnbench.parallel.findings import efficiencies
from attnbench.parallel.records import ParallelCase
from attnbench.registry import find
from attnbench.sweeps.files import preset_names
from attnbench.sweeps.layers import Overrides
from attnbench.sweeps.loader import load
from attnbench.words import duration

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Records of whole models, and of sequences over many GPUs, are of a kind of their own.
RECORDED = sorted(path for path in (ROOT / "results").glob("**/*.parquet") if kind_of(path) is None)


def _shown(file: str) -> list[str]:
    """The lines that README shows below the prompt that plots a recorded run."""
    block = README.split(f"$ attnbench plot {file}", 1)[1].split("\n\n", 1)[0]
    return [line.strip() for line in block.splitlines()[1:]]


@pytest.mark.parametrize("name", ["constant-speed", "kernels"])
def test_readme_shows_what_the_command_prints(name: str) -> None:
    file = f"results/h200/{name}.parquet"
    text = io.StringIO()
    summary.render(summary.summarize_run(load_results(ROOT / file)), Console(file=text, width=110))
    printed = [line.strip() for line in text.getvalue().splitlines()]
    shown = [line for line in _shown(file) if line != "..."]
    assert len(shown) > 10
    assert [line for line in shown if line not in printed] == []


def test_every_command_in_readme_exists() -> None:
    lines = [line for line in README.splitlines() if re.match(r"\s+(\$ )?attnbench [a-z]", line)]
    used = {shlex.split(line.replace("$ ", ""), comments=True)[1] for line in lines}
    known = {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    }
    groups = {group.typer_instance.info.name for group in app.registered_groups if group.typer_instance}
    assert used == known | groups


def test_the_preset_table_is_complete_and_right() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|.*\| (\d+) cases \|$", README, re.MULTILINE)
    assert sorted(name for name, _ in rows) == list(preset_names())
    for name, count in rows:
        assert len(load(name, device="cuda", overrides=Overrides()).cases()) == int(count), name


def test_links_and_pictures_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: p.stem)
def test_recorded_runs_read_and_hold_known_mechanisms(path: Path) -> None:
    frame = load_results(path)
    assert (frame["status"] == "ok").any()
    wrong = frame[frame["status"] == "incorrect"]
    assert not wrong["provider"].str.contains("attnbench").any()  # another library's fault is a finding
    assert all(find(name).name == name for name in frame["mechanism"].unique())
    assert set(frame["run_id"]) == set(frame.attrs["runs"])


def test_the_roofline_shares_that_readme_states() -> None:
    frame = load_results(ROOT / "results/h200/constant-speed.parquet")
    best = frame[frame["mechanism"] == "lightning2"].groupby("workload")["roofline"].max()
    assert f"reaches at most {best['bwd']:.0%}".replace("%", " %") in " ".join(README.split())
    assert f"its forward at most {best['fwd']:.0%}".replace("%", " %") in " ".join(README.split())


def test_the_efficiencies_on_two_gpus_that_readme_states() -> None:
    rows = read(ROOT / "results/h200x2/parallel.parquet", kind=ParallelCase)
    found = {
        (r.mechanism, r.workload, r.seq_len): efficiencies(rows).get(r.case_id) for r in rows if r.ranks == 2
    }
    lasp, lasp2 = "lightning2-lasp", "lightning2-lasp2"
    text = " ".join(README.split()).replace(" %", "%")
    forward, *others = (
        tuple(f"{found[name, workload, length]:.1%}" for name in (lasp, lasp2))
        for length, workload in ((2**20, "fwd"), (2**20, "fwd-bwd"), (2**22, "fwd"), (2**22, "fwd-bwd"))
    )
    assert forward == (forward[0],) * 2
    assert f"1M tokens at {forward[0]} of twice one GPU's speed forward" in text
    for pair in others:
        assert f" at {' and '.join(pair)}" in text
    short = [found[name, workload, 2**16] or 0.0 for name in (lasp, lasp2) for workload in ("fwd", "fwd-bwd")]
    assert f"{min(short) * 100:.0f} to {max(short):.0%} of twice one's speed" in text


def test_the_ratios_of_the_field_that_readme_states() -> None:
    frame = load_results(ROOT / "results/h200/field.parquet")
    times = frame[frame["status"] == "ok"].pivot_table(
        index=["head_dim", "workload", "seq_len"], columns="mechanism", values="median_ms", aggfunc="min"
    )
    over = times.drop(columns=["lightning2", "retnet", "fla-retention"]).div(times["lightning2"], axis=0)
    nearest = over.min(axis=1).groupby("head_dim").agg(["min", "max"])
    retention = times["fla-retention"] / times["retnet"]
    maps = over[["linear-elu", "cosformer", "performer", "rfa"]]
    text = " ".join(README.split())
    (short, long), (short_128, long_128) = (nearest.loc[dim].to_numpy(dtype=float) for dim in (64, 128))
    assert f"{short:.1f} to {long:.1f} times as long at head dim 64" in text
    assert f"and {short_128:.1f} to {long_128:.1f} at 128" in text
    assert f"is {retention.min():.1f} to {retention.max():.1f} times as fast as `fla-retention`" in text
    assert f"{maps.min().min():.0f} to {maps.max().max():.0f} times the plain kernel's time" in text


def test_what_readme_states_of_the_gate_and_of_verify() -> None:
    text = " ".join(README.split())
    judged = json.loads((ROOT / "results/h200/gate/evidence.json").read_text())["gates"]
    counts = {
        (gate["pool"], planted): Counter(
            verdict
            for case, found in gate["cases"].items()
            if case.startswith("lightning1") is planted
            for verdict in found["verdicts"]
        )
        for gate in judged
        for planted in (True, False)
    }
    unchanged = counts["unchanged", True] + counts["unchanged", False]
    five, two = counts["planted-0.05", True], counts["planted-0.02", True]
    assert f"called none of {unchanged.total()} cases slower" in text
    assert unchanged["slower"] == two["faster"] == 0
    assert f"were found in {five['slower']} of {five.total()}" in text
    assert f"in {two['slower']} of {two.total()}, and never as `faster`" in text
    noises = _column(ROOT / "results/h200/gate/evidence.md", "noise", until="## ")
    assert f"differ by {min(noises):.2f} to {max(noises):.2f} %" in text
    assert f"in all {len(noises)} cases within 1 %" in text
    found = json.loads((ROOT / "results/h200/verify/verify.json").read_text())
    assert f"{sum(each['shapes'] for each in found):,} cases are right and none is wrong" in text
    assert not any(each["faults"] or each["left"] for each in found)


def test_what_readme_and_design_state_of_the_clocks() -> None:
    file = ROOT / "results/h200/gate/agreement.md"
    (constant,) = set(re.findall(r"less ([0-9.]+) µs", file.read_text()))
    beyond = _column(file, "beyond, µs")
    long_ = [us >= 50 for us in _column(file, "CUPTI, µs")]
    less = [ratio for ratio, so in zip(_column(file, f"less {constant} µs"), long_, strict=True) if so]
    profilers = ROOT / "results/h200/profilers.md"
    first, second = (_column(profilers, f"kernels by {name}, µs") for name in ("torch.profiler", "proton"))
    apart = [abs(a / b - 1) for a, b in zip(first, second, strict=True)]
    texts = [" ".join((ROOT / name).read_text().split()) for name in ("README.md", "DESIGN.md")]
    worst = max(abs(each - 1) for each in less)
    for text in texts:
        assert f"{min(beyond):.1f} to {max(beyond):.1f} us" in text
        assert f"{float(constant):.1f} us" in text
        assert f"all {len(less)} cases" in text
        assert f"within {worst * 100:.1f} %" in text
    assert f"{statistics.median(apart) * 100:.2f} % in the median and by {max(apart) * 100:.0f} %" in texts[1]


def _column(file: Path, heading: str, *, until: str | None = None) -> list[float]:
    """The numbers below a heading of the first table of a page."""
    rows = [line.strip("| ").split(" | ") for line in file.read_text().partition(until or "\0")[0].splitlines()
            if line.startswith("| ")]  # fmt: skip
    place = rows[0].index(heading)
    return [float(row[place].removesuffix(" %")) for row in rows[2:]]


def test_the_ratios_of_the_grid_that_readme_states() -> None:
    frame = load_results(ROOT / "results/h200/grid.parquet")
    times = frame.pivot_table(
        index=["workload", "batch", "heads", "seq_len", "dtype"], columns="mechanism", values="median_ms"
    )
    ratio = times["flash2"] / times["lightning2"]
    assert len(ratio) == 108
    assert ratio.min() > 1
    text = " ".join(README.split())
    assert f"takes {ratio.min():.1f} to {ratio.max():.0f} times as long, and is ahead nowhere" in text


def test_the_limit_of_paper_readme_that_readme_states() -> None:
    alone, beside = (
        frame[
            (frame["mechanism"] == "lightning2") & (frame["workload"] == "fwd") & (frame["seq_len"] == 1024)
        ]["median_ms"].item()
        for frame in (
            load_results(ROOT / f"results/h200/{name}.parquet") for name in ("paper-readme", "paper-fig3")
        )
    )
    assert f"{alone:.2f} ms forward for {beside:.2f} in `paper-fig3`" in " ".join(README.split())


def test_the_steps_of_decode_that_readme_states() -> None:
    frame = load_results(ROOT / "results/h200/decode.parquet")
    times = frame.pivot_table(index="seq_len", columns="mechanism", values="median_ms")
    ours, theirs = times["lightning2"] * 1e3, times["flash2"]
    (run,) = frame.attrs["runs"].values()
    text = " ".join(README.split())
    assert f"One more token for {frame['batch'].iloc[0]} sequences" in text
    assert f"a step takes {ours.min():.1f} to {ours.max():.1f} µs at every context" in text
    assert f"{theirs[1024] * 1e3:.0f} µs at 1k tokens and {theirs[2**20]:.1f} ms at 1M" in text
    assert f"the clock's own time is {run['ceilings']['empty_call_ms'] * 1e3:.1f} µs" in text


def test_what_readme_states_of_the_gate_on_a_branch() -> None:
    branch = json.loads((ROOT / "results/h200/gate/evidence.json").read_text())["branch"]
    verdicts = {case["case_id"]: case["verdict"] for case in branch["cases"]}
    slower = [case for case, verdict in verdicts.items() if verdict == "slower"]
    assert slower
    assert all((case in slower) == case.startswith("lightning1.") for case in verdicts)
    said = f"named exactly the {len(slower)} cases of Lightning-1, in {branch['seconds']:.0f} s"
    assert said in " ".join(README.split())


def test_paper_all_took_less_than_a_quarter_of_an_hour_as_its_page_says() -> None:
    (sitting,) = sittings(ROOT / "results/h200/paper-all/paper")
    assert sum(sitting.seconds.values()) < 15 * 60
    assert len(sitting.seconds) == 12
    assert f"{duration(sum(sitting.seconds.values()))} of measuring in one sitting" in " ".join(
        README.split()
    )
    for name in ("README.md", "index.html"):
        page = (ROOT / "reports/h200/paper-all" / name).read_text(encoding="utf-8")
        assert words([sitting]) in page
        assert all(cell in page for row in took_table([sitting]).rows for cell in row)


def test_what_readme_states_of_measuring_again_on_another_host() -> None:
    names = ("paper-fig3", "paper-readme", "paper-tnl-fig4", "constant-speed", "decode")
    graph, long, short = [], [], []
    for name in names:
        before, after = (
            load_results(ROOT / f"results/h200/{folder}{name}.parquet").set_index("case_id")["median_ms"]
            for folder in ("", "paper-all/")
        )
        ratio = (after / before).dropna()
        if name == "decode":
            graph += list(ratio)
        else:
            long += list(ratio[before >= 0.5])
            short += list(ratio[before < 0.5])
    said = " ".join(README.split())
    assert f"the {len(graph)} of `decode`, replayed as graphs, differ by {_span(graph)}" in said
    assert f"of the {len(long)} others of half a millisecond or longer by {_span(long)}" in said
    assert f"but the {len(short)} shorter ones take up to {max(short):.1f} times as long" in said


def _span(ratios: Sequence[float]) -> str:
    return f"{100 * (min(ratios) - 1):+.1f} % to {100 * (max(ratios) - 1):+.1f} %"


def test_how_many_claims_hold_as_readme_states() -> None:
    said = re.search(
        r"of (\d+) claims (\d+) hold here and (\d+) do not hold",
        (ROOT / "reports/h200/paper/README.md").read_text(encoding="utf-8"),
    )
    assert said is not None
    claims, hold, fail = (int(each) for each in said.groups())
    assert f"Of {claims} claims {hold} hold on that H200 and {fail} do not" in " ".join(README.split())


def _rates(
    attention: str, size: str, *, checkpointing: str = "selective", on: str = "h200"
) -> dict[int, float]:
    """Thousands of tokens per second and GPU by length."""
    rows = read(ROOT / f"results/{on}/paper/train-step.parquet", kind=TrainStep)
    return {
        row.seq_len: row.tokens_per_s / 1e3
        for row in rows
        if (row.attention, row.size, row.checkpointing) == (attention, size, checkpointing)
        and row.tokens_per_s
    }


def test_the_training_speeds_that_readme_states() -> None:
    text = " ".join(README.split())
    small, middle, large = (_rates("lightning2", size).values() for size in ("0.4B", "1B", "3B"))
    assert f"at {min(small):.0f} to {max(small):.0f} k tokens/s (0.4B)" in text
    assert f"{min(middle):.1f} to {max(middle):.1f} k (1B) from 1k to 92k" in text
    assert f"at {min(large):.1f} to {max(large):.1f} k (3B) from 1k to 32k" in text
    full_small, full_middle = (_rates("lightning2", size, checkpointing="full") for size in ("0.4B", "1B"))
    assert (
        f"256k trains at {full_small[2**18]:.0f} k tokens/s (0.4B) and {full_middle[2**18]:.1f} k (1B)"
        in text
    )
    assert f"sequences of 8k at {full_small[8192]:.0f} k and {full_middle[8192]:.1f} k" in text
    a, b, c = (_rates("flash2", size) for size in ("0.4B", "1B", "3B"))
    assert f"falls from {a[1024]:.0f} to {a[94208]:.1f} k, from {b[1024]:.1f} to {b[94208]:.1f} k" in text
    assert f"and from {c[1024]:.1f} to {c[32768]:.1f} k" in text
    ratios = (
        _rates("lightning2", size)[length] / _rates("flash2", size)[length]
        for size, length in (("0.4B", 94208), ("1B", 81920), ("3B", 32768))
    )
    said = "The ratio is {:.1f} at 92k tokens of 0.4B, {:.1f} at 80k of 1B and {:.1f} at 32k of 3B"
    assert said.format(*ratios) in text


def test_where_the_memory_ends_that_readme_states() -> None:
    rows = read(ROOT / "results/h200/paper/train-step.parquet", kind=TrainStep)
    ends = {
        (row.size, row.attention): row.seq_len
        for row in rows
        if (row.status, row.checkpointing) == ("oom", "selective")
    }
    assert ends == {
        (size, name): length
        for size, length in (("1B", 2**17), ("3B", 2**16))
        for name in ("lightning2", "lightning1", "flash2")
    }
    text = " ".join(README.split())
    assert "out of memory at the same length, 3B at 64k and 1B at 128k" in text
    ours, theirs = (_rates(name, "3B", checkpointing="full") for name in ("lightning2", "flash2"))
    assert (
        f"at {ours[2**16]:.1f} k tokens/s in one sequence of 64k and at {ours[2**17]:.1f} k in one of 128k"
        in text
    )
    assert f"LLaMA at {theirs[2**16]:.1f} k in one of 64k" in text


def test_the_training_on_two_gpus_that_readme_states() -> None:
    ours, theirs = (_rates(name, "3B", on="h200x2") for name in ("lightning2", "flash2"))
    alone = _rates("lightning2", "3B")
    text = " ".join(README.split())
    assert (
        f"at {ours[1024]:.1f} k tokens/s a GPU in sequences of 1k and at {ours[2**15]:.1f} k in those of 32k"
        in text
    )
    shares = {f"{ours[length] / alone[length] * 100:.0f} %" for length in (1024, 2**15)}
    assert len(shares) == 1
    assert f"{shares.pop()} of one GPU's speed" in text
    assert f"LLaMA at {theirs[1024]:.1f} and {theirs[2**15]:.1f} k" in text
    full = _rates("lightning2", "3B", checkpointing="full", on="h200x2")
    assert f"at {full[2**18]:.1f} k in one sequence of 256k on each" in text


def test_the_inference_of_whole_models_that_readme_states() -> None:
    rows = [
        row
        for row in read(ROOT / "results/h200/paper/inference.parquet", kind=Inference)
        if row.size == "1B" and row.median_ms
    ]
    step = {(row.cache, row.context): row.median_ms or 0.0 for row in rows if row.phase == "decode"}
    text = " ".join(README.split())
    assert f"1B model {step['state', 1024]:.1f} ms behind 1k and behind 1M tokens" in text
    assert f"{step['state', 1024]:.1f}" == f"{step['state', 2**20]:.1f}"
    assert f"LLaMA {step['kv', 1024]:.1f} ms behind 1k, {step['kv', 2**18]:.1f} ms behind 256k" in text
    bounded = [ms for (cache, _), ms in step.items() if cache == "kv-streaming"]
    assert f"with a bounded cache {min(bounded):.1f} to {max(bounded):.1f} ms" in text
    made = {(r.cache, r.new_tokens): r for r in rows if r.phase == "generate"}
    rates = {
        new: [(made[cache, new].tokens_per_s or 0.0) / 1e3 for cache in ("state", "kv")]
        for new in (128, 1024)
    }
    state, kv = rates[128]
    assert (
        f"{state:.1f} k tokens/s for {made['state', 128].batch:,} sequences, LLaMA {kv:.1f} k for "
        f"{made['kv', 128].batch}: {state / kv:.1f} times"
    ) in text
    state, kv = rates[1024]
    assert f"it is {state:.1f} k against {kv:.1f} k: {state / kv:.1f} times, where the paper has 5.2" in text
