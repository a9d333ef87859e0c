"""Sweeps: sizes and names as typed, presets, order of cases, layers, and every way to get a file wrong."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.case import Case, Launch, Protocol, Workload
from attnbench.errors import UserError
from attnbench.registry import Provider, find
from attnbench.sweeps.files import preset_names
from attnbench.sweeps.layers import Overrides
from attnbench.sweeps.loader import load
from attnbench.sweeps.sweep import Device, Sweep
from attnbench.sweeps.values import LARGEST, parse_names, parse_size, parse_sizes

DEVICES: tuple[Device, ...] = ("cuda", "cpu")

GRID = """\
description = "a grid"
mechanism = ["lightning2", "sdpa"]
workload = ["fwd", "bwd"]
dtype = ["bf16", "fp32"]
seq_len = ["2k", 1024, 100]
batch = [1, 2]
heads = [2, 4]
head_dim = [64]
"""

CONSTANT_TOKENS = GRID.replace("batch = [1, 2]", 'tokens = "4k"').replace(", 100]", "]")

SHAPES = """\
mechanism = "lightning2"
workload = "fwd"
dtype = "bf16"
shapes = [[4, 16, "2k", 128], [1, 8, 1000, 64], [4, 16, 2048, 128]]
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def loaded(folder: Path, text: str, device: Device = "cuda", **overrides: Any) -> Sweep:
    return load(write(folder, text), device=device, overrides=Overrides(**overrides))


def sentence(folder: Path, text: str | bytes, device: Device = "cuda", **overrides: Any) -> str:
    """What the user reads, without the folder of the file."""
    with pytest.raises(UserError) as caught:
        load(write(folder, text), device=device, overrides=Overrides(**overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{folder}/", "")


# Values


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (1, 1),
        ("4096", 4096),
        ("4k", 4096),
        ("4K", 4096),
        (" 1M ", 2**20),
        ("1m", 2**20),
        ("1.5k", 1536),
        ("0.5k", 512),
        (LARGEST, LARGEST),
    ],
)
def test_size(value: object, size: int) -> None:
    assert parse_size(value, axis="--seq-len") == size


WRONG_TEXTS = [
    "-3",
    "0",
    "0k",
    "1.5",
    "1.3k",
    "1e3",
    "k",
    "4kk",
    "4g",
    "+4",
    "1_024",
    "024",
    "0x10",
    "٤",
    "nan",
]


@pytest.mark.parametrize("value", [*WRONG_TEXTS, "", " ", "4 k", "9" * 5000, 0, -1, 1.0, True, None, [], {}])
def test_size_that_is_none(value: object) -> None:
    with pytest.raises(
        UserError, match=r"^--seq-len: expected a positive whole number such as 4096, 4k or 1M, got '"
    ):
        parse_size(value, axis="--seq-len")


def test_size_quotes_what_came() -> None:
    with pytest.raises(UserError, match=r"got '-3'$"):
        parse_size("-3", axis="--seq-len")
    with pytest.raises(UserError, match=r"got 'true'$"):
        parse_size(True, axis="--seq-len")
    with pytest.raises(UserError, match=r"got '4\\nk'$"):
        parse_size("4\nk", axis="--seq-len")


@pytest.mark.parametrize("value", [LARGEST + 1, "4096M", pytest.param(1 << 99_999, id="huge")])
def test_size_has_an_upper_bound(value: object) -> None:
    with pytest.raises(UserError, match=f"--seq-len: expected at most {LARGEST}, got '"):
        parse_size(value, axis="--seq-len")


@given(st.integers(1, 1000), st.sampled_from([("", 1), ("k", 1024), ("K", 1024), ("m", 2**20), ("M", 2**20)]))
def test_size_round_trip(count: int, unit: tuple[str, int]) -> None:
    suffix, factor = unit
    assert parse_size(f"{count}{suffix}", axis="x") == parse_size(count * factor, axis="x") == count * factor


@given(st.integers(1, LARGEST))
def test_size_in_fractions_of_k_is_exact(size: int) -> None:
    exact = f"{size // 1024}.{size % 1024 * 10**10 // 1024:010d}k"  # a 1024th has ten decimals
    assert parse_size(exact, axis="x") == size


@given(st.text("0123456789.kKmM-+_e ", max_size=8) | st.integers() | st.floats() | st.booleans() | st.none())
def test_size_is_positive_or_a_user_error(value: object) -> None:
    with contextlib.suppress(UserError):
        assert 1 <= parse_size(value, axis="x") <= LARGEST


def test_sizes() -> None:
    assert parse_sizes("1k, 2k,4k", axis="x") == (1024, 2048, 4096)
    assert parse_sizes(["4k,1k", 7, "1024"], axis="x") == (4096, 1024, 7)
    assert parse_sizes(7, axis="x") == (7,)


@pytest.mark.parametrize("value", ["1k,,2k", "1k,", "", ","])
def test_sizes_with_an_empty_item(value: str) -> None:
    with pytest.raises(UserError, match=r"--seq-len: expected a positive whole number .*, got ''"):
        parse_sizes(value, axis="--seq-len")


def test_sizes_with_a_thousands_separator() -> None:
    with pytest.raises(UserError, match="got '024'"):
        parse_sizes("1,024", axis="--seq-len")


def test_empty_lists() -> None:
    with pytest.raises(UserError, match="--seq-len: empty grid"):
        parse_sizes([], axis="--seq-len")
    with pytest.raises(UserError, match="dtype: empty grid"):
        parse_names([], kind="dtype", choices=("bf16",))


def test_names() -> None:
    choices = ("bf16", "fp16", "fp32")
    assert parse_names("fp16, bf16,fp16", kind="dtype", choices=choices) == ("fp16", "bf16")
    assert parse_names(["fp32", "bf16,fp32"], kind="dtype", choices=choices) == ("fp32", "bf16")
    with pytest.raises(UserError, match=r"^dtype: unknown dtype 'bf61'; did you mean 'bf16'\?$"):
        parse_names("bf61", kind="dtype", choices=choices)
    with pytest.raises(UserError, match=r"^--dtype: unknown dtype 'int4'; choose from: bf16, fp16, fp32$"):
        parse_names("int4", kind="dtype", choices=choices, axis="--dtype")
    for value in ("bf16,,fp16", "", 3, [True], None):
        with pytest.raises(UserError, match=r"^--dtype: expected the name of a dtype, got '"):
            parse_names(value, kind="dtype", choices=choices, axis="--dtype")


# Presets


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", preset_names())
def test_preset(name: str, device: Device) -> None:
    sweep = load(name, device=device)
    cases = sweep.cases()
    assert (sweep.name, sweep.device) == (name, device)
    assert sweep.description
    assert len({case.case_id for case in cases}) == len(cases) > 0
    record = sweep.as_dict()
    assert json.loads(json.dumps(record)) == record
    if sweep.axes.tokens is not None:
        assert {case.tokens for case in cases} == {sweep.axes.tokens}
    assert all((case.window is None) != find(case.mechanism).windowed for case in cases)


def test_preset_names() -> None:
    names = (
        "ci",
        "constant-speed",
        "crossover",
        "decode",
        "decode-batch",
        "field",
        "grid",
        "kernels",
        "paper-fig3",
        "paper-readme",
        "paper-tnl-fig4",
        "quick",
    )
    assert preset_names() == names


@pytest.mark.parametrize("name", preset_names())
def test_preset_on_a_machine_without_a_gpu(name: str) -> None:
    """Only mechanisms and dtypes that have a CPU provider, and sizes far below those of a GPU."""
    cpu, cuda = load(name, device="cpu"), load(name, device="cuda")
    assert all(isinstance(find(mechanism).provider_for("cpu"), Provider) for mechanism in cpu.axes.mechanism)
    assert cpu.axes.dtype == ("fp32",)
    on_cpu, on_gpu = (max(c.batch * c.seq_len for c in sweep.cases()) for sweep in (cpu, cuda))
    assert on_cpu <= 8192 < on_gpu
    assert cpu.protocol.launch is Launch.EAGER
    assert cpu.protocol.limit_s <= 5


def test_unknown_preset() -> None:
    with pytest.raises(UserError, match=r"^unknown preset 'quik'; did you mean 'quick'\?$"):
        load("quik", device="cpu")
    with pytest.raises(UserError, match=r"^unknown preset ''; choose from: ci, constant-speed, "):
        load("", device="cpu")


def test_importing_the_loader_does_not_import_torch() -> None:
    code = "import sys, attnbench.sweeps.loader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Cases


def test_order_of_cases(tmp_path: Path) -> None:
    cases = loaded(tmp_path, GRID).cases()
    assert [(c.dtype, c.heads, c.batch, c.seq_len, str(c.workload), c.mechanism) for c in cases] == list(
        itertools.product(
            ("bf16", "fp32"), (2, 4), (1, 2), (100, 1024, 2048), ("fwd", "bwd"), ("lightning2", "sdpa")
        )
    )


def test_constant_tokens(tmp_path: Path) -> None:
    cases = loaded(tmp_path, CONSTANT_TOKENS).cases()
    assert {(case.seq_len, case.batch) for case in cases} == {(1024, 4), (2048, 2)}


def test_value_dim_and_kv_heads(tmp_path: Path) -> None:
    plain = loaded(tmp_path, GRID).cases()
    assert {(case.value_dim, case.kv_heads - case.heads) for case in plain} == {(64, 0)}
    cases = loaded(tmp_path, GRID + "value_dim = [64, 128]\nkv_heads = 2\n").cases()
    assert len(cases) == 2 * len(plain)
    assert {(case.value_dim, case.kv_heads) for case in cases} == {(64, 2), (128, 2)}


def test_windows_are_for_mechanisms_that_have_one(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "mechanism": "sdpa,streaming-llm",
        "seq_len": "100",
        "heads": "2",
        "batch": "1",
        "dtype": "fp32",
    }
    several = loaded(tmp_path, GRID, **asked, workload="fwd", window="16,1k").cases()
    assert [(c.mechanism, c.window) for c in several] == [
        ("sdpa", None),
        ("streaming-llm", 16),
        ("streaming-llm", 1024),
    ]
    assert several[1].case_id == "streaming-llm.fwd.B1-H2-N100-D64-W16.fp32"
    default = loaded(tmp_path, GRID, **asked).cases()
    assert {c.window for c in default if c.mechanism == "streaming-llm"} == {1024}


def test_values_are_as_wide_as_a_mechanism_has_them(tmp_path: Path) -> None:
    cases = loaded(tmp_path, GRID, mechanism="lightning2,retnet").cases()
    assert {(c.mechanism, c.value_dim) for c in cases} == {("lightning2", 64), ("retnet", 128)}
    asked = loaded(tmp_path, GRID, mechanism="lightning2,retnet", value_dim="32").cases()
    assert {c.value_dim for c in asked} == {32}


@pytest.mark.parametrize(
    ("line", "masks"),
    [("", [True]), ("causal = false", [False]), ("causal = [true, false]", [True, False])],
    ids=["default", "full", "both"],
)
def test_masks(tmp_path: Path, line: str, masks: list[bool]) -> None:
    cases = loaded(tmp_path, GRID + line + "\n").cases()
    assert list(dict.fromkeys(case.causal for case in cases)) == masks
    assert {c.causal for c in loaded(tmp_path, GRID + line + "\n", causal=False).cases()} == {False}


def test_a_mask_that_is_none(tmp_path: Path) -> None:
    assert "causal: expected true or false, got 'yes'" in sentence(tmp_path, GRID + 'causal = "yes"\n')
    assert "causal: expected true or false, got '1'" in sentence(tmp_path, GRID + "causal = [1]\n")


def test_shapes_keep_their_order_and_repeated_ones_are_merged(tmp_path: Path) -> None:
    cases = loaded(tmp_path, SHAPES).cases()
    assert [case.shape_id for case in cases] == ["B4-H16-N2048-D128", "B1-H8-N1000-D64"]
    assert len(loaded(tmp_path, SHAPES, mechanism="lightning2,sdpa", value_dim=[32]).cases()) == 4


FURTHER = (
    SHAPES
    + """
[[also]]
mechanism = ["lightning2", "sdpa"]
workload = ["decode"]
shapes = [[64, 8, 128, 64]]
"""
)


def names(sweep: Sweep) -> list[tuple[str, str, str]]:
    return [(case.mechanism, str(case.workload), case.shape_id) for case in sweep.cases()]


def test_a_further_grid_inherits_what_it_does_not_name(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, FURTHER)
    assert names(sweep)[: len(loaded(tmp_path, SHAPES).cases())] == names(loaded(tmp_path, SHAPES))
    assert names(sweep)[-2:] == [(name, "decode", "B64-H8-N128-D64") for name in ("lightning2", "sdpa")]
    assert {case.dtype for case in sweep.cases()} == {"bf16"}
    assert sweep.as_dict()["also"][0]["workload"] == ["decode"]


def test_cases_of_two_grids_are_there_once(tmp_path: Path) -> None:
    twice = loaded(tmp_path, SHAPES + "[[also]]\nworkload = ['fwd', 'bwd']\n")
    assert len(names(twice)) == len(set(names(twice))) == 4


@pytest.mark.parametrize(
    ("asked", "decoded"),
    [
        ({"mechanism": "sdpa"}, ["sdpa"]),
        ({"mechanism": "lightning1"}, []),
        ({"workload": "bwd"}, []),
        ({"dtype": "fp16"}, ["lightning2", "sdpa"]),
    ],
    ids=str,
)
def test_the_command_line_takes_away_from_a_further_grid(
    tmp_path: Path, asked: dict[str, Any], decoded: list[str]
) -> None:
    sweep = loaded(tmp_path, FURTHER, **asked)
    assert [case.mechanism for case in sweep.cases() if case.workload == "decode"] == decoded


def test_the_cpu_has_further_grids_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path, FURTHER + "[cpu]\nalso = []\n")
    assert "decode" not in {workload for _, workload, _ in names(load(path, device="cpu"))}
    assert "decode" in {workload for _, workload, _ in names(load(path, device="cuda"))}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[also]]\nheadz = 3\n", r"also\[1\]\.headz: unknown key; did you mean 'heads'\?"),
        (
            "[[also]]\n[also.protocol]\ncap_s = 1\n",
            r"also\[1\]\.protocol: the grids of a sweep share one protocol",
        ),
        ("also = 3\n", r"also should be a valid list, got '3'"),
    ],
    ids=["key", "protocol", "type"],
)
def test_a_further_grid_that_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        loaded(tmp_path, SHAPES + text)


def test_a_single_value_stands_for_a_list(tmp_path: Path) -> None:
    text = SHAPES.split("shapes")[0] + 'seq_len = "1k"\nbatch = 1\nheads = 2\nhead_dim = 64'
    case = Case(
        mechanism="lightning2",
        workload=Workload.FWD,
        batch=1,
        heads=2,
        seq_len=1024,
        head_dim=64,
        dtype="bf16",
    )
    assert loaded(tmp_path, text).cases() == (case,)


def test_record(tmp_path: Path) -> None:
    assert loaded(tmp_path, SHAPES, protocol={"cap_s": 2}).as_dict() == {
        "name": "mine",
        "description": "",
        "device": "cuda",
        "axes": {
            "mechanism": ["lightning2"],
            "workload": ["fwd"],
            "dtype": ["bf16"],
            "shapes": [[4, 16, 2048, 128], [1, 8, 1000, 64]],
        },
        "protocol": json.loads(json.dumps(Protocol(cap_s=2.0).as_dict())),
    }


# Layers: the file, [cpu], the command line


def test_cpu_table_replaces_keys_on_a_cpu_only(tmp_path: Path) -> None:
    text = (
        GRID
        + "[protocol]\ncap_s = 2\nseed = 7\n[cpu]\nseq_len = 64\ntokens = 128\n[cpu.protocol]\ncap_s = 1\n"
    )
    cpu, cuda = loaded(tmp_path, text, "cpu"), loaded(tmp_path, text, "cuda")
    assert (cpu.axes.seq_len, cpu.axes.batch, cpu.axes.tokens) == ((64,), (), 128)
    assert (cuda.axes.seq_len, cuda.axes.batch, cuda.axes.tokens) == ((2048, 1024, 100), (1, 2), None)
    assert cpu.protocol == Protocol(cap_s=1.0, seed=7)
    assert cuda.protocol == Protocol(cap_s=2.0, seed=7)


def test_cpu_table_may_change_between_shapes_and_axes(tmp_path: Path) -> None:
    text = GRID + "[cpu]\nshapes = [[1, 2, 64, 32]]\n"
    assert {case.shape_id for case in loaded(tmp_path, text, "cpu").cases()} == {"B1-H2-N64-D32"}
    text = SHAPES + "[cpu]\nbatch = 1\nheads = 2\nseq_len = 64\nhead_dim = 16\n"
    assert [case.shape_id for case in loaded(tmp_path, text, "cpu").cases()] == ["B1-H2-N64-D16"]


def test_overrides_replace_axes(tmp_path: Path) -> None:
    sweep = loaded(
        tmp_path,
        GRID,
        mechanism=["flash2", "sdpa,lightning1"],
        workload="fwd-bwd",
        dtype=("fp16",),
        seq_len="4k,1k",
        batch=3,
        heads=[8],
        head_dim="32",
        value_dim="64",
        kv_heads="4",
        protocol={"limit_s": 7, "launch": "graph"},
    )
    assert [case.case_id for case in sweep.cases()] == [
        f"{mechanism}.fwd-bwd.B3-H8-KV4-N{n}-D32-E64.fp16"
        for n in (1024, 4096)
        for mechanism in ("flash2", "sdpa", "lightning1")
    ]
    assert sweep.protocol == Protocol(limit_s=7.0, launch=Launch.GRAPH)


def test_batch_and_tokens_replace_each_other(tmp_path: Path) -> None:
    assert {c.batch for c in loaded(tmp_path, CONSTANT_TOKENS, batch="3").cases()} == {3}
    assert {c.tokens for c in loaded(tmp_path, GRID, tokens="2k", seq_len="1k,2k").cases()} == {2048}


def test_overrides_apply_over_the_cpu_table() -> None:
    sweep = load("quick", device="cpu", overrides=Overrides(seq_len="128,2k"))
    assert sweep.axes.seq_len == (128, 2048)
    assert sweep.axes.heads == (2,)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"seq_len": "1k,-3"},
            "--seq-len: expected a positive whole number such as 4096, 4k or 1M, got '-3'",
        ),
        ({"seq_len": []}, "--seq-len: empty grid: give at least one value"),
        (
            {"mechanism": "lightning3"},
            "--mechanism: unknown mechanism 'lightning3'; did you mean 'lightning2'?",
        ),
        ({"workload": "fw"}, "--workload: unknown workload 'fw'; did you mean 'fwd'?"),
        ({"dtype": "bf61"}, "--dtype: unknown dtype 'bf61'; did you mean 'bf16'?"),
        ({"batch": 1, "tokens": "4k"}, "--tokens: give tokens or batch, not both (batch = tokens / seq_len)"),
        (
            {"tokens": "1k,2k"},
            "--tokens: expected a positive whole number such as 4096, 4k or 1M, got '1k,2k'",
        ),
        ({"protocol": {"limit": 3.0}}, "--limit: unknown key; did you mean 'limit_s'?"),
        ({"protocol": {"limit_s": -1.0}}, "--limit-s should be greater than 0, got '-1.0'"),
        ({"kv_heads": 3}, "mine.toml: heads 2 is not a multiple of kv_heads 3"),
    ],
)
def test_bad_override(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    assert sentence(tmp_path, GRID, **overrides) == message


def test_tokens_that_do_not_divide(tmp_path: Path) -> None:
    assert sentence(tmp_path, CONSTANT_TOKENS, seq_len="1k,3000").startswith(
        "mine.toml: tokens 4096 is not a multiple of seq_len 3000; "
    )
    assert "tokens 4096 is not a multiple of seq_len 8192" in sentence(
        tmp_path, CONSTANT_TOKENS, seq_len="8k"
    )


@pytest.mark.parametrize("key", ["seq_len", "batch", "tokens", "heads", "head_dim"])
def test_override_of_a_shape(tmp_path: Path, key: str) -> None:
    flag = "--" + key.replace("_", "-")
    assert sentence(tmp_path, SHAPES, "cuda", **{key: 64}) == (
        f"{flag}: mine.toml lists its shapes one by one; choose a sweep with axes instead"
    )


# Files that are wrong


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seq_len =", "seqlen =", "line 5: seqlen: unknown key; did you mean 'seq_len'?"),
        ("heads = [2, 4]", "heads = []", "line 7: heads: empty grid: give at least one value"),
        ("heads = [2, 4]", "heads = [2, 4.0]", "line 7: heads: expected a positive whole number"),
        ("heads = [2, 4]", "heads = {a = 1}", "line 7: heads: expected a positive whole number"),
        ("heads = [2, 4]", "heads = [[2]]", "line 7: heads: expected a positive whole number"),
        (
            "heads = [2, 4]",
            "heads = 0x" + "f" * 9999,
            "line 7: heads: expected at most 2147483647, got 'a number",
        ),
        ("heads = [2, 4]", "heads = " + "9" * 9999, ": malformed TOML: a number of thousands"),
        ("heads = [2, 4]", "heads = true", "line 7: heads: expected a positive whole number"),
        ("heads = [2, 4]", "heads = 1979-05-27", "line 7: heads: expected a positive whole number"),
        ("heads = [2, 4]", "heads =\n", "line 7: malformed TOML: Invalid value"),
        ("heads = [2, 4]", "heads = [2", "line 8: malformed TOML: "),
        ("heads = [2, 4]", "batch = [3]", "line 7: malformed TOML: Cannot overwrite a value"),
        ("head_dim = [64]", "head_dim = [64", "line 8: malformed TOML: Unclosed array"),
        ("head_dim = [64]", "tokens = 3", "line 8: tokens: give tokens or batch, not both"),
        ("head_dim = [64]", "shapes = [[1, 2, 3, 4]]", "line 6: batch: give batch or shapes, not both"),
        (
            "lightning2",
            "lightning3",
            "line 2: mechanism: unknown mechanism 'lightning3'; did you mean 'lightning2'?",
        ),
        ('"fwd", "bwd"', '"forward"', "line 3: workload: unknown workload 'forward'; "),
        ('"fwd", "bwd"', "", "line 3: workload: empty grid: give at least one value"),
        ("fp32", "fp23", "line 4: dtype: unknown dtype 'fp23'; did you mean 'fp32'?"),
        ('"a grid"', "7", "line 1: description should be a valid string, got '7'"),
        ("description", "protocol = 3\ndescription", "line 1: protocol should be a table, got '3'"),
        ("description", "cpu = 3\ndescription", "line 1: cpu should be a table, got '3'"),
        ("description", '"a\\nb" = 3\ndescription', ": 'a\\nb': unknown key; "),
    ],
)
def test_bad_file(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = GRID.replace(old, new)
    for device in DEVICES:
        found = sentence(tmp_path, text, device)
        assert found.startswith("mine.toml")
        assert message in found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ("[protocol]\nlimit = 3", "line 10: protocol.limit: unknown key; did you mean 'limit_s'?"),
        ("protocol.limit_s = 0", "line 9: protocol.limit_s should be greater than 0, got '0'"),
        ("protocol.limit_s = nan", "line 9: protocol.limit_s should be "),
        ("protocol.limit_s = inf", "line 9: protocol.limit_s should be a finite number, got 'inf'"),
        ('protocol.limit_s = "3"', "line 9: protocol.limit_s should be a valid number, got '3'"),
        ("protocol.limit_s = true", "line 9: protocol.limit_s should be a valid number, got 'true'"),
        ("protocol.min_samples = 3.5", "line 9: protocol.min_samples should be a valid integer, got '3.5'"),
        ("protocol.pause_s = -1", "line 9: protocol.pause_s should be greater than or equal to 0, got '-1'"),
        ("protocol.cache = 'warm'", "line 9: protocol.cache should be 'cold' or 'hot', got 'warm'"),
        ("protocol.max_samples = 3", ": the protocol needs min_samples_floor <= min_samples <= max_samples"),
        ("[cpu]\nheads = [0]", "line 10: cpu.heads: expected a positive whole number"),
        ("[cpu]\nhaeds = [1]", "line 10: cpu.haeds: unknown key; did you mean 'heads'?"),
        ("[cpu]\ncpu.heads = 1", "line 10: cpu.cpu: unknown key; choose from: "),
        ("[cpu]\n\n[cpu.protocol]\ncap = 1", "line 12: cpu.protocol.cap: unknown key; did you mean 'cap_s'?"),
        ("cpu = { heads = 0 }", "line 9: cpu.heads: expected a positive whole number"),
        ("[cpu]\nbatch = 1\ntokens = 1", "line 11: cpu.tokens: give tokens or batch, not both"),
        (
            "[cpu]\n# heads = 1\nheads = [\n  1,\n  0,\n]",
            "line 11: cpu.heads: expected a positive whole number",
        ),
    ],
)
def test_bad_tables(tmp_path: Path, device: Device, tail: str, message: str) -> None:
    found = sentence(tmp_path, GRID + tail + "\n", device)
    assert found.startswith("mine.toml")
    assert message in found


@pytest.mark.parametrize("line", GRID.splitlines()[1:])
def test_missing_key(tmp_path: Path, line: str) -> None:
    key = line.split(" = ")[0]
    assert sentence(tmp_path, GRID.replace(line, "")).startswith(f"mine.toml: missing key '{key}'")


def test_empty_file(tmp_path: Path) -> None:
    assert sentence(tmp_path, "") == "mine.toml: missing key 'mechanism'"


@pytest.mark.parametrize("shapes", ["3", "[3]", "[[1, 2, 3]]", '"1,2,3,4"', "[[1, 2, 3, 4], []]"])
def test_shapes_that_are_none(tmp_path: Path, shapes: str) -> None:
    text = SHAPES.split("shapes")[0] + f"shapes = {shapes}"
    message = "mine.toml, line 4: shapes: expected rows of [batch, heads, seq_len, head_dim], got '"
    assert sentence(tmp_path, text).startswith(message)


def test_shapes_with_bad_sizes_or_none_at_all(tmp_path: Path) -> None:
    start = SHAPES.split("shapes")[0]
    found = sentence(tmp_path, start + "shapes = [\n  [1, 2, 3, 0],\n]")
    assert found.startswith("mine.toml, line 4: shapes: expected a positive whole number")
    assert sentence(tmp_path, start + "shapes = []").startswith("mine.toml, line 4: shapes: empty grid")


def test_line_is_found_below_a_text_that_looks_like_it(tmp_path: Path) -> None:
    text = '# heads = 0\ndescription = """\nheads = 0\n"""\nheads = 0\n'
    assert sentence(tmp_path, text).startswith("mine.toml, line 5: heads: ")
    assert sentence(tmp_path, text.replace("\n", "\r\n")).startswith("mine.toml, line 5: heads: ")


def test_file_from_a_windows_editor(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbf" + GRID.replace("\n", "\r\n").encode())
    assert load(path, device="cuda").description == "a grid"


def test_file_that_is_not_text(tmp_path: Path) -> None:
    assert sentence(tmp_path, b"heads = 1\nx = '\xff'") == "mine.toml, line 2: the file is not UTF-8 text"
    assert "malformed TOML" in sentence(tmp_path, b"\0\0")
    assert "nested too deeply" in sentence(tmp_path, "x = " + "[" * 100_000)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^there is no sweep file 'nowhere/mine.toml'$"):
        load("nowhere/mine.toml", device="cpu")
    with pytest.raises(
        UserError, match=r"^there is no sweep file 'quick.toml'; did you mean the preset 'quick'\?$"
    ):
        load("quick.toml", device="cpu")
    with pytest.raises(UserError, match="there is no sweep file"):
        load(tmp_path / "mine", device="cpu")


def test_path_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is a directory, not a sweep file"):
        load(f"{tmp_path}/", device="cpu")
    with pytest.raises(UserError, match="cannot read the sweep file"):
        load("a\0b.toml", device="cpu")
    with pytest.raises(UserError, match="cannot read the sweep file"):
        load("a" * 5000 + ".toml", device="cpu")
    path = write(tmp_path, GRID)
    with pytest.raises(UserError, match="cannot read the sweep file"):
        load(path / "x.toml", device="cpu")

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"cannot read the sweep file '.*mine.toml': Permission denied$"):
        load(path, device="cpu")


def test_a_window_for_nobody_is_refused(tmp_path: Path) -> None:
    said = sentence(tmp_path, GRID, window="256")
    assert said == "mine.toml: a window is given, and none of lightning2, sdpa has one"
