"""The model of scaling, on data whose truth is known, and the figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from attnbench.case import Workload
from attnbench.errors import UserError
from attnbench.models.records import read
from attnbench.parallel import figures, predictions
from attnbench.parallel.computing import Bounded, SoftmaxCompute, fit_bounded, fit_compute
from attnbench.parallel.figures import plot_scaling
from attnbench.parallel.findings import same_line
from attnbench.parallel.mechanisms import MECHANISMS
from attnbench.parallel.records import ParallelCase
from attnbench.parallel.requests import ParallelRequest
from attnbench.parallel.scaling import Link, fit

RECORDED = Path(__file__).parents[2] / "results" / "h200x2" / "parallel.parquet"
LATENCY_S, BYTES_PER_S = 20e-6, 200e9
LENGTHS = [2**16, 2**18, 2**20]


def _linear_ms(ranks: int, tokens: float) -> float:
    """One rank and several have floors and slopes of their own."""
    return max(0.5, 5e-6 * tokens) if ranks == 1 else max(0.9, 5.5e-6 * tokens)


def _row(
    mechanism: str, ranks: int, seq_len: int, *, decay: bool = True, workload: str = "fwd"
) -> ParallelCase:
    """A case that obeys a law: times in milliseconds, transfers that nothing hides but what is said here."""
    request = ParallelRequest(
        mechanism=mechanism,
        ranks=ranks,
        seq_len=seq_len,
        batch=1,
        heads=16,
        head_dim=128,
        dtype="bf16",
        workload=workload,
        decay=decay,
    )
    tokens = seq_len / ranks
    softmax = mechanism == "ring-attention"
    compute = 0.05 * ranks + 1e-9 * tokens * seq_len if softmax else _linear_ms(ranks, tokens)
    traffic = MECHANISMS[mechanism].traffic(request.problem, Workload(workload))
    waits = sum(t.launches * LATENCY_S + (t.steps - t.launches) * 2e-6 for t in traffic)
    moved = 1e3 * (waits + sum(t.steps * t.bytes / BYTES_PER_S for t in traffic))
    hidden = 1 - 1 / ranks if softmax else (1.0 if decay else 1 / 8)
    total = compute + max(0.0, moved - hidden * compute)
    return dataclasses.replace(
        request.blank(),
        backend=None if ranks == 1 else "nccl",
        device="a card",
        median_ms=total,
        tokens_per_s=seq_len / total * 1e3,
        compute_ms=compute,
        communication_ms=moved,
        exposed_ms=total - compute,
        peak_bytes=int(2**12 * tokens),
        sent_bytes=0,
    )


ROWS = [
    *(_row(name, ranks, n) for name in MECHANISMS for ranks in (1, 2, 4) for n in LENGTHS),
    *(_row("lightning2-lasp2", ranks, n, decay=False) for ranks in (1, 2, 4) for n in LENGTHS),
]


def test_the_model_finds_the_law_and_the_link() -> None:
    model = fit(ROWS)
    assert model.measured is not None
    assert model.measured.latency_s == pytest.approx(LATENCY_S, rel=1e-6)
    assert model.measured.bytes_per_s == pytest.approx(BYTES_PER_S, rel=1e-6)
    assert len(model.lines) == 4
    for line in model.lines.values():
        assert line.errors == pytest.approx([0.0] * 6, abs=1e-6)
        for ranks in (8, 64, 1024):
            truth = _row(line.mechanism, ranks, 2**23, decay=line.key[6] is not False)
            found = line.total_ms(ranks=ranks, seq_len=2**23, link=model.measured)
            assert found == pytest.approx(truth.median_ms, rel=1e-6)


@given(
    tokens=st.lists(st.integers(6, 24).map(lambda power: 2**power), min_size=2, max_size=6, unique=True),
    bound=st.integers(5, 24).map(lambda power: 1.4 * 2**power),
    slope=st.floats(1e-7, 1e-3),
)
def test_a_floor_and_a_slope_are_found_wherever_one_gives_way_to_the_other(
    tokens: list[int], bound: float, slope: float
) -> None:
    truth = Bounded(floor=slope * bound, per_token=slope)
    found = fit_bounded([(n, truth.ms(n)) for n in tokens])
    assert [found.ms(n) for n in tokens] == pytest.approx([truth.ms(n) for n in tokens])
    if max(tokens) > bound:
        assert found.per_token == pytest.approx(slope)
        assert found.floor == pytest.approx(truth.floor if min(tokens) < bound else 0.0)


def test_a_short_call_that_is_no_slower_than_its_tokens_makes_no_floor() -> None:
    assert fit_bounded([(1000, 0.99), (2000, 2.0), (4000, 4.04)]).floor == 0.0


def test_a_kind_that_was_not_measured_is_taken_to_be_like_the_other() -> None:
    alone, parallel = (
        [_row("lightning2-lasp", ranks, n) for ranks in counts for n in LENGTHS] for counts in ((1,), (2, 4))
    )
    for rows in (alone, parallel):
        law = fit_compute(rows)
        at_once, cut = law.ms(ranks=1, seq_len=2**20), law.ms(ranks=8, seq_len=2**23)
        assert at_once == pytest.approx(cut)


def test_ring_attention_at_one_length_is_all_pairs_and_noise_no_term() -> None:
    """Of such cases tokens and pairs cannot be told apart, and a term for each case would follow their noise."""
    noisy = [
        dataclasses.replace(_row("ring-attention", ranks, 2**16), compute_ms=ms)
        for ranks, ms in ((1, 193.0), (2, 99.0))
    ]
    law = fit_compute(noisy)
    assert isinstance(law, SoftmaxCompute)
    assert (law.per_token, law.per_step) == (0.0, 0.0)
    assert law.ms(ranks=2, seq_len=2**19) == pytest.approx(64 * 99.0, rel=0.02)


def test_what_was_measured_as_a_whole_alone_is_checked() -> None:
    whole = [dataclasses.replace(r, compute_ms=None) if r.seq_len == LENGTHS[1] else r for r in ROWS]
    line = fit(whole).lines[same_line(ROWS[0])]
    assert line.errors == pytest.approx([0.0] * 6, abs=1e-6)


@pytest.mark.parametrize(
    ("mechanism", "most"),
    [("lightning2-lasp", 0.03), ("lightning2-lasp2", 0.03), ("ring-attention", 0.05)],
    ids=["lasp", "lasp2", "ring"],
)
def test_the_recorded_times_of_one_rank_are_what_the_model_says(mechanism: str, most: float) -> None:
    """Of ring attention a pair of tokens took 8 % longer at 512k, in the one sample there is, than at 64k."""
    rows = [row for row in read(RECORDED, kind=ParallelCase) if row.mechanism == mechanism]
    lines = fit(rows).lines
    alone = [row for row in rows if row.ranks == 1 and row.compute_ms]
    assert len(alone) >= 3
    for row in alone:
        found = lines[same_line(row)].compute.ms(ranks=1, seq_len=row.seq_len)
        assert found == pytest.approx(row.compute_ms, rel=most), row.case_id


def test_an_error_of_the_model_is_told() -> None:
    slower = [dataclasses.replace(r, median_ms=(r.median_ms or 0) * (2 if r.ranks == 4 else 1)) for r in ROWS]
    (check,) = (s for s in fit(slower).assumptions if s.startswith("Check"))
    assert "24 measured cases" in check
    assert "25% in the median and by 50% at most, that of " in check
    assert " on 4 ranks at " in check


def test_the_links_are_the_measured_one_and_infiniband() -> None:
    nvlink, infiniband = fit(ROWS).links
    assert nvlink.bytes_per_s == pytest.approx(BYTES_PER_S)
    assert infiniband.bytes_per_s == 50e9
    assert infiniband.latency_s > nvlink.latency_s
    on_cpu = fit([dataclasses.replace(r, backend=r.backend and "gloo") for r in ROWS])
    assert [link.bytes_per_s for link in on_cpu.links] == [450e9, 50e9]
    assert "assumed" in on_cpu.links[0].source


def test_without_decay_a_slow_link_is_hidden_behind_an_eighth_alone() -> None:
    slow = Link(name="slow", latency_s=1.0, bytes_per_s=1e9, source="")
    lines = {(line.mechanism, line.key[6]): line for line in fit(ROWS).lines.values()}
    at = {"ranks": 2, "seq_len": 2**20}
    compute = _linear_ms(2, 2**19)
    moved = 1e3 * (1.0 + 16 * 128 * 128 * 4 / 1e9)
    decays = lines["lightning2-lasp2", True].exposed_ms(**at, link=slow)
    plain = lines["lightning2-lasp2", False].exposed_ms(**at, link=slow)
    assert decays == pytest.approx(moved - compute)
    assert plain == pytest.approx(moved - compute / 8)


def test_one_length_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="two lengths or more"):
        fit([row for row in ROWS if row.seq_len == LENGTHS[0] and row.ranks == 1])


def test_predictions_are_of_lengths_that_so_many_ranks_can_share() -> None:
    short = [_row("lightning2-lasp", ranks, n) for ranks in (1, 2) for n in (256, 512)]
    found = predictions.predict(short, fit(short))
    assert {each["ranks"] for each in found if each["scaling"] == "strong"} == {8, 64}
    assert {each["ranks"] for each in found if each["scaling"] == "weak"} == {8, 64, 1024}
    heads, rows = predictions.table(found)
    assert {len(row) for row in rows} == {len(heads)}


def test_figures_carry_their_assumptions(tmp_path: Path) -> None:
    files = plot_scaling(ROWS, fit(ROWS), tmp_path)
    assert [file.name for file in files] == [
        f"scaling.fwd.B1-H16-D128.bf16.{kind}" for kind in ("png", "svg")
    ]
    assert all(file.stat().st_size > 10_000 for file in files)
    sentences = fit(ROWS).assumptions
    assert any("InfiniBand NDR" in s and "50 GB/s" in s for s in sentences)


def test_a_figure_says_what_is_missing_and_compares_where_most_was_measured(tmp_path: Path) -> None:
    late = [_row("ring-attention", 1, n, workload="bwd") for n in LENGTHS[1:]]
    late = [dataclasses.replace(row, status="timeout", median_ms=None, tokens_per_s=None) for row in late]
    alone = [
        *(_row("lightning2-lasp2", 1, n, workload="bwd") for n in LENGTHS),
        _row("ring-attention", 1, LENGTHS[0], workload="bwd"),
    ]
    rows = [*ROWS, _row("lightning2-lasp", 1, 2**22), *alone, *late]
    model = fit(rows)
    forward, backward = plot_scaling(rows, model, tmp_path, formats=["svg"])
    pairs = forward.read_text()
    assert "Strong scaling, 1,048,576 tokens" in pairs  # the longest one on three numbers of ranks
    assert "Weak scaling, 262,144 tokens a rank" in pairs
    assert "Check: over 24 measured cases" in pairs
    assert "Not measured" not in pairs
    gaps = backward.read_text()
    assert "Not measured: ring-attention on 1 rank at 256k, 1M (timeout)." in gaps
    assert "Nothing here was measured on several ranks." in gaps
    assert "ring-attention has no line: it takes two lengths to fit one." in gaps
    assert "Not checked: " in gaps


def test_small_shares_and_large_lengths_can_be_read() -> None:
    _, rows = predictions.table(predictions.predict(ROWS, fit(ROWS)))
    assert max(len(cell) for row in rows for cell in row[3:]) <= 10
    assert not any(row[-1] == "0.0%" for row in rows)


def test_numbers_at_lines_lie_inside_of_their_panel_and_name_all_that_end_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []

    def keep(figure: Figure, path: Path) -> Path:
        drawn.append(figure)
        return path

    monkeypatch.setattr(figures, "save", keep)
    plot_scaling(ROWS, fit(ROWS), tmp_path, formats=["png"])
    (figure,) = drawn
    figure.draw_without_rendering()
    notes = {
        axes.get_ylabel(): [text for text in axes.texts if isinstance(text, Annotation)]
        for axes in figure.axes[2:]
    }
    assert "1, 2, 4" in {text.get_text() for text in notes["tokens/s a rank"]}
    assert {text.get_text() for text in notes["GiB a rank"]} == {"1", "2", "4"}
    for axes in figure.axes[2:]:
        inside = axes.get_window_extent()
        for text in notes[axes.get_ylabel()]:
            assert inside.contains(*text.get_window_extent().p0)
            assert inside.contains(*text.get_window_extent().p1)
