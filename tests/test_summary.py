"""The closing words, word by word, on small frames."""

from __future__ import annotations

import io
import json
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from rich.console import Console

from attnbench.case import Case
from attnbench.executors.spared import NOT_ATTEMPTED
from attnbench.store import COLUMNS, SCHEMA
from attnbench.summary import as_json, closing, render, sentences, summarize_run
from attnbench.words import bytes_text, rate_text, time_text

Row = dict[str, Any]


def row(mechanism: str, seq_len: int, ms: float | None = None, **given: Any) -> Row:
    """A row with every column of the schema; without a time its status and reason are to be given."""
    workload, batch = given.pop("workload", "fwd"), given.pop("batch", 1)
    case = Case(
        mechanism=mechanism,
        workload=workload,
        batch=batch,
        heads=16,
        seq_len=seq_len,
        head_dim=128,
        dtype="bf16",
    )
    values: Row = dict.fromkeys(COLUMNS) | case.as_dict() | {"workload": workload, "case_id": case.case_id}
    values |= {"run_id": "run-1", "device": "NVIDIA H200", "status": "ok"}
    if ms is not None:
        values |= {"median_ms": ms, "ci_low_ms": ms * 0.99, "ci_high_ms": ms * 1.01}
        values |= {"tokens_per_s": case.tokens / ms * 1e3, "peak_bytes": 5 << 28}
    return values | given


def frame(*rows: Row) -> pd.DataFrame:
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    result: pd.DataFrame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    result.attrs = {"runs": {}}
    return result


def crossing() -> list[Row]:
    """flash2 in 0.73 ms at 512 tokens, doubling; lightning2 in 1 ms at every length."""
    fast = [row("flash2", n, 0.73 * n / 512) for n in (512, 1024, 2048)]
    return [*fast, *(row("lightning2", n, 1.0) for n in (512, 1024, 2048))]


def said(*rows: Row) -> str:
    return "\n".join(sentences(summarize_run(frame(*rows))))


def printed(*rows: Row, **how: Any) -> str:
    out = io.StringIO()
    render(summarize_run(frame(*rows)), Console(file=out, width=140, color_system=None), **how)
    return out.getvalue()


def test_who_is_fastest_where() -> None:
    (section,) = summarize_run(frame(*crossing())).sections
    assert [(each.seq_len, each.mechanism, each.next) for each in section.leaders] == [
        (512, "flash2", "lightning2"),
        (1024, "lightning2", "flash2"),
        (2048, "lightning2", "flash2"),
    ]
    assert section.leaders[2].ahead == pytest.approx(2.92)
    assert all(each.clear for each in section.leaders)
    assert "flash2 is fastest at 512 tokens, lightning2 from 1,024 to 2,048" in said(*crossing())


def test_crossover_in_words() -> None:
    assert "lightning2 overtakes flash2 between 512 and 1,024 tokens (about 700)." in said(*crossing())


def test_ahead_in_words() -> None:
    rows = [row(name, n, ms) for n in (512, 1024) for name, ms in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    text = said(*rows)
    assert "a is ahead of b and c from 512 tokens or earlier." in text
    assert "b is ahead of c" not in text, "only what concerns the leader is said"


def test_one_length_says_nothing_of_others() -> None:
    text = said(row("a", 512, 1.0), row("b", 512, 2.0))
    assert "a is ahead of b at 512 tokens." in text


def test_a_mechanism_alone_is_told_too() -> None:
    text = printed(row("a", 512, 1.0), row("a", 1024, 4.0))
    assert "a runs at 256 k tokens/s (1,024 tokens) to 512 k tokens/s (512), 2.00× from end to end." in text
    assert "a runs at 512 k tokens/s at 512 tokens." in printed(row("a", 512, 1.0))
    assert "a runs at" not in printed(*(row(name, n, 1.0) for n in (512, 1024) for name in ("a", "b")))


def test_what_was_measured_beside_nothing_is_not_called_fastest() -> None:
    """As when runs of different lengths are drawn together; what failed there was beaten."""
    rows = [*crossing(), row("lightning2", 4096, 1.0), row("lightning2", 8192, 1.0)]
    text = said(*rows)
    assert "lightning2 from 1,024 to 2,048, lightning2 alone was measured from 4,096 to 8,192." in text
    assert printed(*rows).count("nothing else was measured") == 2
    tried = [*rows, *(row("flash2", n, None, status="timeout") for n in (4096, 8192))]
    assert "lightning2 from 1,024 to 8,192." in said(*tried)
    assert "nothing else was measured" not in printed(*tried)


def test_who_is_not_told_apart_is_not_called_fastest() -> None:
    wide = {"ci_low_ms": 0.5, "ci_high_ms": 3.0}
    rows = [row("a", 512, 1.0), row("b", 512, 2.0)]
    rows += [row(name, n, ms, **wide) for n in (1024, 2048) for name, ms in (("a", 1.1), ("b", 1.0))]
    rows += [row("a", 4096, 1.0), row("b", 4096, 4.0)]
    text = said(*rows)
    assert (
        "a is fastest at 512 tokens, a and b are not told apart from 1,024 to 2,048, a is fastest at 4,096."
        in text
    )
    assert "a is ahead of b from 512 tokens or earlier (not told apart at 1,024 and 2,048 tokens)." in text
    even = rows[2:6]
    assert "a and b are not told apart from 1,024 to 2,048 tokens." in said(*even)
    assert "ahead" not in said(*even)


def test_a_mechanism_that_changed_between_two_sittings_of_a_run_is_doubted() -> None:
    versions = [f"k.py {name}" for name in ("30fa4982", "c63d2c02")]
    rows = [row("good", n, 1.0, provider=name) for n, name in zip((128, 256), versions, strict=True)]
    said_ = "the rows of good are of k.py 30fa4982 and k.py c63d2c02: it was changed between two sittings of one run"
    assert f"Warning: {said_}." in said(*rows)
    tails = [row("flash2", n, 1.0, provider=f"torch 2.11.0 {kind}") for n, kind in ((128, "a"), (256, "b"))]
    assert "was changed" not in said(*tails)


def test_flatness_in_words() -> None:
    (section,) = summarize_run(frame(*crossing())).sections
    assert [each.mechanism for each in section.flatness] == ["flash2", "lightning2"]
    assert section.flatness[1].slope == pytest.approx(1)
    expected = "flash2 is the flattest: its tokens/s stay within a factor of 1.00 (701 k tokens/s at"
    assert expected in said(*crossing())


def test_decode_in_words() -> None:
    """A state costs the same at any context, a cache what it holds; tokens/s are of the new tokens alone."""
    flat = [row("lightning2", n, 0.02, workload="decode", batch=4) for n in (1024, 4096, 16384)]
    steep = [row("flash2", n, 0.01 * n / 1024, workload="decode", batch=4) for n in (1024, 4096, 16384)]
    text = said(*flat, *steep)
    assert (
        "Decode, batch 4, 16 heads, head dim 128, bf16, causal, NVIDIA H200: flash2 is fastest at 1,024"
        in text
    )
    assert "lightning2 overtakes flash2 between 1,024 and 4,096 tokens (about 2,000)." in text
    assert "lightning2 is the flattest: its tokens/s stay within a factor of 1.00 (200 k tokens/s at" in text
    assert "Decode, batch 4" in printed(*flat, *steep)


def test_what_was_not_measured() -> None:
    oom = [
        row("linear-cumsum", n, status="oom", reason=f"tried to allocate {n} GiB")
        for n in (8192, 16384, 32768)
    ]
    text = said(row("linear-cumsum", 4096, 1.0), *oom)
    assert "Not measured: linear-cumsum (fwd): out of memory from 8,192 tokens on (3 cases)." in text


def test_reasons_that_differ_in_numbers_are_one() -> None:
    late = [row("a", n, status="timeout", reason=f"no 5 samples in {n} s") for n in (1024, 2048)]
    here = summarize_run(frame(row("a", 4096, 1.0), *late)).missing
    assert [each.sentence() for each in here] == [
        "a (fwd): timed out between 1,024 and 2,048 tokens (2 cases): no 5 samples in 1024 s"
    ]


def test_what_was_spared_stands_with_what_it_was_spared_for() -> None:
    late = "one call takes 9 s: 5 samples do not fit the case limit of 2 s"
    over = f"{NOT_ATTEMPTED}: batch 1, heads 4, seq_len 1024 is no more work and was over the limit ({late})"
    rows = [
        row("a", 512, 1.0), row("a", 1024, status="timeout", reason=late),
        *(row("a", n, status="timeout", reason=over) for n in (2048, 4096)),
    ]  # fmt: skip
    here = summarize_run(frame(*rows)).missing
    assert [each.sentence() for each in here] == [
        f"a (fwd): timed out from 1,024 tokens on (3 cases, 2 of them not attempted): {late}"
    ]


def test_unsupported_everywhere_in_all_workloads() -> None:
    rows = [
        row("xformers", n, status="unsupported", reason="not installed", workload=workload)
        for n in (512, 1024)
        for workload in ("bwd", "fwd")
    ]
    assert "Not measured: xformers (fwd, bwd): unsupported at every length (4 cases): not installed." in said(
        *rows
    )


def test_a_single_failure_is_no_trend() -> None:
    rows = [row("a", 512, status="oom", reason="x"), row("a", 1024, status="error", reason="boom")]
    text = said(*rows, row("a", 2048, 1.0))
    assert "a (fwd): out of memory at 512 tokens (1 case)." in text
    assert "a (fwd): error at 1,024 tokens (1 case): boom." in text


def test_incorrect_is_loud() -> None:
    wrong = row("lightning1", 1024, 0.001, status="incorrect", reason="rel_err_o 0.3 is over 0.01")
    rows = [row("flash2", 1024, 1.0), wrong]
    first, *rest = sentences(summarize_run(frame(*rows)))
    assert first == (
        "INCORRECT: lightning1 (fwd): wrong output at every length (1 case): rel_err_o 0.3 is over 0.01."
    )
    assert (
        rest[-1].endswith("1 case gave wrong output and count as no speed.")
        or "gave wrong output" in rest[-1]
    )
    (section,) = summarize_run(frame(*rows)).sections
    assert {each.mechanism for each in section.leaders} == {"flash2"}, "never as a speed"
    assert "INCORRECT" in printed(*rows)


@pytest.mark.parametrize("empty_ms", [0.004, None], ids=["told", "of-before"])
def test_calls_that_are_mostly_the_clocks(empty_ms: float | None) -> None:
    """By the device that measured them; of 0.08 ms the clock's 4 us are the twentieth that is let pass."""
    rows = [row("a", n, ms, device="one") for n, ms in ((512, 0.01), (1024, 0.07), (2048, 0.08))]
    given = frame(*rows, row("a", 4096, 0.01, device="another"))
    ceilings = {"copy_gbps": 1.0, "matmul_tflops": {}, "empty_call_ms": empty_ms}
    given.attrs["runs"] = {"r": {"environment": {"device": "one"}, "ceilings": ceilings}}
    said = [w for w in summarize_run(given).warnings if "clock's own" in w]
    assert bool(said) is (empty_ms is not None)
    if said:
        assert "in 2 of 3 timed cases more than 5% of the time is the clock's own" in said[0]
        assert "a call that does nothing takes 4.00 µs by it (at worst of 0.0100 ms: a.fwd." in said[0]


def test_calls_that_wait_for_the_host() -> None:
    """Not those that wait for some microseconds, nor those of which nothing is known."""
    rows = [row("a", n, 1.0, busy_ms=busy) for n, busy in ((512, 0.3), (1024, 0.79), (2048, 0.81))]
    text = said(*rows, row("a", 4096, 0.006, busy_ms=0.002), row("a", 8192, 1.0))
    assert (
        "Warning: in 2 of 4 timed cases the device waited for its host for more than 20% of the time (at worst it was "
        "at work for 0.300 ms of 1.00 ms: a.fwd.B"
    ) in text
    assert "N512-D128.bf16); with --launch graph times are the device's alone." in text
    assert "waited for its host" not in said(*rows[2:])


def test_throttling() -> None:
    rows = [row("a", 512, 1.0, throttle=["sw_power_cap"]), row("a", 1024, 1.0, throttle=["gpu_idle"])]
    text = said(*rows, row("a", 2048, 1.0, throttle=[]), row("a", 4096, 1.0))
    assert "Warning: the device held its clock back in 1 of 4 timed cases (sw_power_cap)." in text


def test_clocks() -> None:
    rows = [row("a", n, 1.0, sm_clock_mhz=mhz) for n, mhz in ((512, 1980.0), (1024, 1200.0))]
    expected = (
        "Warning: the SM clock of NVIDIA H200 ranged from 1,200 to 1,980 MHz; "
        "1 case ran below 75% of the fastest."
    )
    assert expected in said(*rows)
    assert "SM clock" not in said(row("a", 512, 1.0, sm_clock_mhz=1980.0), row("a", 1024, 1.0))


def test_wide_intervals() -> None:
    text = said(row("a", 512, 1.0, ci_high_ms=1.2), row("a", 1024, 1.0))
    assert "1 case has a 95 % interval of the median that reaches farther than 5% from it (up to 20%)" in text


def test_energy() -> None:
    text = said(row("a", 512, 1.0, energy_j=0.5), row("a", 1024, 1.0, energy_j=0.25), row("b", 512, 1.0))
    assert "energy per million tokens: a 244 J at 1,024 tokens." in text


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row("a", 512, status="oom", reason="x")],
        [row("a", 512, 1.0)],
        [row("a", 512, 1.0), row("a", 1024, 2.0)],
        [row("a", 512, 1.0) | dict.fromkeys(("ci_low_ms", "ci_high_ms", "peak_bytes", "device"))],
        [
            dict.fromkeys(COLUMNS)
            | {"case_id": "x", "run_id": "r", "mechanism": "m", "workload": "w", "status": "ok"}
        ],
        [
            dict.fromkeys(COLUMNS)
            | {"case_id": "x", "run_id": "r", "mechanism": "m", "workload": "w", "status": "error"}
        ],
    ],
    ids=["none", "no-ok", "one-point", "one-mechanism", "no-interval", "nothing-known", "no-reason"],
)
def test_little_to_say(rows: list[Row]) -> None:
    assert closing(summarize_run(frame(*rows))) in printed(*rows)
    assert json.loads(json.dumps(as_json(summarize_run(frame(*rows))), allow_nan=False))["rows"] == len(rows)


def test_last_sentence() -> None:
    rows = [*crossing(), row("a", 512, status="oom", reason="x")]
    assert said(*rows).endswith("7 cases on NVIDIA H200: 6 ok, 1 oom.")
    assert said() == "There is no case in these results."


def test_names_are_no_markup() -> None:
    name = "[bold red]mine[/bold red] [/]"
    text = printed(row(name, 512, 1.0), row("b", 512, status="error", reason="[/nonsense] in [link=x]"))
    assert text.count(name) >= 2
    assert "[/nonsense] in [link=x]" in text
    assert name in printed(row(name, 512, 1.0), detail=False)


def test_render_tables() -> None:
    text = printed(*crossing())
    assert "Forward, batch 1, 16 heads, head dim 128, bf16, causal, NVIDIA H200" in text
    for cell in ("1.02 M tokens/s", "1.00 ms", "1.25 GiB", "flash2 takes 1.46× the time", "1.00×", "+1.00"):
        assert cell in text


def test_many_sections_become_one_table() -> None:
    rows = [row(m, n, 1.0 + i, batch=b) for b in range(1, 7) for i, m in enumerate("ab") for n in (256, 512)]
    text = printed(*rows)
    assert "Forward, 16 heads, head dim 128, bf16, causal, NVIDIA H200" in text
    assert text.count("a is fastest from 256 to 512 tokens") == 6
    assert "1.00 ms" not in text
    assert "1.00 ms" in printed(*rows, detail=True)


def test_many_sections_tell_every_flatness_and_crossing() -> None:
    rows = [each | {"batch": batch} for batch in range(1, 7) for each in crossing()]
    text = " ".join(printed(*rows).split())
    assert text.count("lightning2 over flash2: 512 to 1,024") == 6
    assert text.count("flash2 1.00×") == 6
    assert text.count("lightning2 4.00×") == 6


def test_a_leader_that_fails_is_overtaken_by_failure() -> None:
    rows = [row("a", 512, 1.0), row("b", 512, 2.0), row("b", 1024, 4.0)]
    late = row("a", 1024, status="timeout", reason="one call takes 9 s")
    expected = (
        "b overtakes a by failure between 512 and 1,024 tokens (a at 1,024: timed out: one call takes 9 s)."
    )
    assert expected in said(*rows, late)


def test_json_is_complete() -> None:
    data = json.loads(json.dumps(as_json(summarize_run(frame(*crossing()))), allow_nan=False))
    assert data["sections"][0]["group"]["heads"] == 16
    assert data["sections"][0]["crossovers"][0]["low"] == 512
    assert data["statuses"] == {"ok": 6}
    assert data["sentences"][-1] == "6 cases on NVIDIA H200: 6 ok."


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12.34e6, "12.3 M tokens/s"),
        (999.6e3, "1.00 M tokens/s"),
        (5.0, "5.00 tokens/s"),
        (3.2e9, "3.20 G tokens/s"),
    ],
)
def test_rate_text(value: float, text: str) -> None:
    assert rate_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.4123, "0.412 ms"), (9.999, "10.0 ms"), (0.0083, "8.30 µs"), (1250.0, "1.25 s"), (4e6, "4,000 s")],
)
def test_time_text(value: float, text: str) -> None:
    assert time_text(value) == text


@pytest.mark.parametrize(("value", "text"), [(5 << 28, "1.25 GiB"), (100, "100 B"), (1 << 20, "1.00 MiB")])
def test_bytes_text(value: float, text: str) -> None:
    assert bytes_text(value) == text


@pytest.mark.parametrize(("locked", "warned"), [(False, True), (True, False), (None, False)])
def test_free_clocks_are_said_aloud(locked: bool | None, warned: bool) -> None:
    given = frame({"mechanism": "lightning2"})
    given.attrs["runs"] = {"r": {"environment": {"gpu": {"name": "NVIDIA X", "clocks_locked": locked}}}}
    said = [w for w in summarize_run(given).warnings if "clocks of NVIDIA X are not locked" in w]
    assert bool(said) is warned
