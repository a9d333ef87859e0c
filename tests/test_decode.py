"""One token more: oracles, inputs, planted faults, work, memory, providers, and the preset from the command line."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench import cli, load_results
from attnbench.baselines import lightning_torch, sdpa
from attnbench.case import Cache, Case, Launch, Protocol, Status, Workload
from attnbench.measure import accuracy, runner
from attnbench.measure.accuracy import Verdict, expect_step, judge_step, poison_outputs
from attnbench.measure.inputs import DecodeCalls, Inputs, build, prepare
from attnbench.measure.memory import memory_pass
from attnbench.registry import Layout, Provider, find, support
from attnbench.semantics import (
    KEPT,
    SEMANTICS,
    TOLERANCES,
    Kept,
    cache_step_oracle,
    decay_linear_oracle,
    geometric_slopes,
    softmax_oracle,
    state_deviation,
    state_step_oracle,
    step_bytes,
    step_flops,
)

Step = Callable[[], tuple[Tensor, ...]]
Decode = Callable[..., Step]

CPU = torch.device("cpu")


def _case(mechanism: str = "m", **changes: Any) -> Case:
    fields: dict[str, Any] = {"batch": 2, "heads": 4, "seq_len": 37, "head_dim": 16, "dtype": "fp32"}
    return Case(mechanism=mechanism, workload=Workload.DECODE, **{**fields, **changes})


def _inputs(case: Case, *, family: str, layout: Layout = "BHND", seed: int = 0) -> Inputs:
    return build(case, semantics=SEMANTICS[family], layout=layout, device=CPU, seed=seed)


def _calls(
    decode: Decode, *, case: Case, family: str = "decay-linear", layout: Layout = "BHND"
) -> DecodeCalls:
    i = _inputs(case, family=family, layout=layout)
    step = decode(i.q, i.k, i.v, *i.kept, slopes=i.slopes, scale=i.scale)
    return DecodeCalls(inputs=i, step=step, names=KEPT[SEMANTICS[family].kept])


def _check(
    decode: Decode, *, case: Case | None = None, family: str = "decay-linear", layout: Layout = "BHND"
) -> Verdict:
    case = case or _case()
    calls = _calls(decode, case=case, family=family, layout=layout)
    expected = expect_step(case, calls=calls, semantics=SEMANTICS[family], device=CPU)
    poison_outputs(case, calls=calls, device=CPU)
    return judge_step(case, got=calls.outputs(), calls=calls, expected=expected)


# ---------------------------------------------------------------- oracles


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("slopes", [None, (0.0, 0.3, 2.0)], ids=["no-decay", "decay"])
def test_steps_on_a_state_are_rows_of_the_whole_sequence(slopes: tuple[float, ...] | None) -> None:
    q, k, v = _random(3, 9, 8), _random(3, 9, 8) + 1, _random(3, 9, 6)
    rates = None if slopes is None else torch.tensor(slopes)
    whole = decay_linear_oracle(q, k, v, None, slopes=rates, scale=0.7, causal=True).o
    state = torch.zeros(3, 8, 6)
    for t in range(9):
        step = state_step_oracle(q[:, t, None], k[:, t], v[:, t], state, slopes=rates, scale=0.7)
        (state,) = step.kept
        torch.testing.assert_close(step.o[:, 0], whole[:, t], rtol=1e-6, atol=1e-6)  # slopes are fp32
    assert state.dtype == torch.float64


def test_a_step_over_caches_is_the_last_row_of_the_whole_sequence() -> None:
    q, k, v = _random(3, 9, 8), _random(3, 9, 8) + 1, _random(3, 9, 6)
    whole = softmax_oracle(q, k, v, None, slopes=None, scale=0.3, causal=True).o
    caches = [x.clone() for x in (k, v)]
    for cache in caches:
        cache[:, -1] = torch.nan
    step = cache_step_oracle(q[:, -1, None], k[:, -1], v[:, -1], *caches, slopes=None, scale=0.3)
    torch.testing.assert_close(step.o[:, 0], whole[:, -1])
    assert all(torch.equal(after, x) for after, x in zip(step.kept, (k, v), strict=True))
    assert all(bool(cache[:, -1].isnan().all()) for cache in caches)  # what was given is left alone


def test_a_step_over_caches_takes_no_slopes() -> None:
    x = torch.zeros(1, 1, 4)
    with pytest.raises(ValueError, match="no decay slopes"):
        cache_step_oracle(x, x[0], x[0], x, x, slopes=torch.ones(1), scale=1.0)


# ---------------------------------------------------------------- inputs


@pytest.mark.parametrize("tokens", [0, 1, 2, 50], ids=lambda n: f"N{n}")
def test_the_deviation_is_that_of_a_real_state(tokens: int) -> None:
    slopes = torch.tensor([0.0, 0.004, 0.7])
    k, v = (torch.randn(3, tokens, 64, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    age = torch.arange(tokens - 1, -1, -1.0)
    state = torch.einsum("hn,hnd,hne->hde", torch.exp(-slopes[:, None] * age), k, v)
    expected = state_deviation(tokens, slopes=slopes, heads=3)
    torch.testing.assert_close(state.double().std(dim=(1, 2)), expected, rtol=0.2, atol=0.0)


def test_without_decay_the_state_grows_with_the_context() -> None:
    assert state_deviation(10_000, slopes=None, heads=2).tolist() == [100.0, 100.0]


def test_a_linear_decode_finds_a_state() -> None:
    case = _case(seq_len=1001, value_dim=32, dtype="bf16")
    i = _inputs(case, family="decay-linear", layout="BNHD")
    (state,) = i.kept
    assert (i.q.shape, i.k.shape, i.v.shape) == ((2, 4, 16), (2, 4, 16), (2, 4, 32))
    assert (i.q.dtype, state.dtype, state.shape) == (torch.bfloat16, torch.float32, (2, 4, 16, 32))
    deviation = state_deviation(1000, slopes=geometric_slopes(4), heads=4)
    torch.testing.assert_close(state.double().std(dim=(0, 2, 3)), deviation, rtol=0.1, atol=0.0)
    assert not any(t.requires_grad for t in i.tensors)
    assert torch.equal(_inputs(case, family="decay-linear").kept[0], state)
    assert not torch.equal(_inputs(case, family="decay-linear", seed=1).kept[0], state)


def test_the_first_token_finds_nothing() -> None:
    (state,) = _inputs(_case(seq_len=1), family="decay-linear").kept
    assert torch.equal(state, torch.zeros_like(state))


@pytest.mark.parametrize("layout", ["BHND", "BNHD"])
def test_a_softmax_decode_finds_caches_without_their_last_row(layout: Layout) -> None:
    i = _inputs(_case(kv_heads=2, value_dim=32), family="softmax", layout=layout)
    keys, values = (i.by_heads(cache) for cache in i.kept)
    assert (i.q.shape, i.k.shape, i.v.shape) == ((2, 4, 16), (2, 2, 16), (2, 2, 32))
    assert (keys.shape, values.shape) == ((2, 2, 37, 16), (2, 2, 37, 32))
    for cache in (keys, values):
        assert bool(cache[:, :, -1].isnan().all())
        assert bool(cache[:, :, :-1].isfinite().all())
    assert all(cache.is_contiguous() for cache in i.kept)


# ---------------------------------------------------------------- right and wrong steps

right_state = lightning_torch.lightning2_decode


def _state_step(compute: Callable[..., tuple[Tensor, Tensor]]) -> Decode:
    """A decode whose step is o, S = compute(q, k, v, S, decay), the state updated in place."""

    def decode(q: Tensor, k: Tensor, v: Tensor, state: Tensor, *, slopes: Tensor, scale: float) -> Step:
        decay = torch.exp(-slopes)[:, None, None]

        def step() -> tuple[Tensor, ...]:
            o, after = compute(q, k, v, state, decay)
            return o, state.copy_(after)

        return step

    return decode


def _query(q: Tensor, state: Tensor) -> Tensor:
    return torch.einsum("bhd,bhde->bhe", q, state)


def _outer(k: Tensor, v: Tensor) -> Tensor:
    return k[..., :, None] * v[..., None, :]


def state_left_behind(q: Tensor, k: Tensor, v: Tensor, S: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    return _query(q, decay * S + _outer(k, v)), S


def state_without_decay(q: Tensor, k: Tensor, v: Tensor, S: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    return _query(q, decay * S + _outer(k, v)), S + _outer(k, v)


def one_head_of_the_state(q: Tensor, k: Tensor, v: Tensor, S: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    after = decay * S + _outer(k, v)
    wrong = after.clone()
    wrong[1, 2] *= 1.001
    return _query(q, after), wrong


def o_of_the_old_state(q: Tensor, k: Tensor, v: Tensor, S: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    return _query(q, S), decay * S + _outer(k, v)


def a_hole_in_the_state(q: Tensor, k: Tensor, v: Tensor, S: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    after = decay * S + _outer(k, v)
    o = _query(q, after)
    after[0, 0, 3, 5] = torch.nan
    return o, after


STATE_FAULTS = [
    (state_left_behind, "state is off by", False),
    (state_without_decay, "state is off by", False),
    (one_head_of_the_state, "state is off by", False),
    (a_hole_in_the_state, "state has unwritten or non-finite elements", False),
    (o_of_the_old_state, "o is off by", True),
]


@pytest.mark.parametrize(
    ("compute", "words", "shows_in_o"), STATE_FAULTS, ids=[f.__name__ for f, *_ in STATE_FAULTS]
)
def test_a_wrong_state_is_incorrect_though_o_is_right(
    compute: Callable[..., tuple[Tensor, Tensor]], words: str, shows_in_o: bool
) -> None:
    verdict = _check(_state_step(compute))
    assert words in str(verdict.fault)
    assert ("o is off" in str(verdict.fault)) is shows_in_o
    assert verdict.accuracy.rel_err_o is not None
    assert (verdict.accuracy.rel_err_o <= TOLERANCES["fp32"]) is not shows_in_o


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_token_that_gets_lost_in_a_long_context_shows_in_any_dtype(dtype: str) -> None:
    """Beside a state of 10^6 undecayed tokens one token is a thousandth: less than bf16 allows, more than fp32 does."""

    def lost(q: Tensor, k: Tensor, v: Tensor, state: Tensor, *, slopes: None, scale: float) -> Step:
        return lambda: (_query(q.float(), state + _outer(k, v)).to(q.dtype), state)

    fault = str(_check(lost, case=_case(seq_len=10**6, dtype=dtype), family="linear").fault)
    assert re.search(
        r"^state is off by 1\.\d+e-03 \(fp32 allows 2e-05\), relative to the fp64 oracle$", fault
    )


def test_a_right_step_passes_in_place_or_beside() -> None:
    def beside(q: Tensor, k: Tensor, v: Tensor, state: Tensor, *, slopes: Tensor, scale: float) -> Step:
        after = torch.exp(-slopes)[:, None, None] * state + _outer(k, v)
        return lambda: (_query(q, after), after)

    for decode in (right_state, beside):
        verdict = _check(decode)
        assert verdict.fault is None
        assert verdict.accuracy.rel_err_o is not None
        assert 0 < verdict.accuracy.rel_err_o < 1e-6
        assert verdict.accuracy.rel_err_dq is None


def test_a_wrong_shape_or_dtype_of_what_is_kept_is_named() -> None:
    def turned(q: Tensor, k: Tensor, v: Tensor, state: Tensor, *, slopes: Tensor, scale: float) -> Step:
        return lambda: (v, state.transpose(2, 3))

    def narrow(q: Tensor, k: Tensor, v: Tensor, state: Tensor, *, slopes: Tensor, scale: float) -> Step:
        return lambda: (v, state.half())

    shape = _check(turned, case=_case(value_dim=24)).fault
    assert shape == "state has shape [2, 4, 24, 16], expected [2, 4, 16, 24]"
    assert _check(narrow).fault == "state is torch.float16, expected torch.float32"


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 2, "value_dim": 24}, {"seq_len": 1}], ids=str)
@pytest.mark.parametrize("layout", ["BHND", "BNHD"])
def test_a_right_step_over_caches_passes(layout: Layout, changes: dict[str, Any]) -> None:
    def turned(q: Tensor, k: Tensor, v: Tensor, *caches: Tensor, slopes: None, scale: float) -> Step:
        step = sdpa.sdpa_decode(q, k, v, *(c.transpose(1, 2) for c in caches), slopes=slopes, scale=scale)
        return lambda: (step()[0], *caches)

    decode: Decode = sdpa.sdpa_decode if layout == "BHND" else turned
    assert _check(decode, case=_case(**changes), family="softmax", layout=layout).fault is None


def _appended_at(row: int) -> Decode:
    def decode(
        q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, *, slopes: None, scale: float
    ) -> Step:
        def step() -> tuple[Tensor, ...]:
            right = sdpa.sdpa_decode(q, k, v, k_cache, v_cache, slopes=slopes, scale=scale)()
            k_cache[:, :, row], v_cache[:, :, row] = k, v
            return right

        return step

    return decode


def test_a_cache_that_is_spoilt_behind_a_right_o_is_incorrect() -> None:
    fault = str(_check(_appended_at(0), family="softmax").fault)
    assert "k_cache is off by" in fault
    assert "v_cache is off by" in fault
    assert "o is off" not in fault
    assert _check(_appended_at(-1), family="softmax").fault is None


def test_a_token_that_is_not_put_into_the_cache_shows() -> None:
    def forgetful(
        q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, *, slopes: None, scale: float
    ) -> Step:
        query = q.unsqueeze(2)
        return lambda: (
            sdpa.sdpa(query, k_cache, v_cache, slopes=None, scale=scale, causal=False).squeeze(2),
            k_cache,
            v_cache,
        )

    verdict = _check(forgetful, family="softmax")
    assert "o has unwritten or non-finite elements" in str(verdict.fault)
    assert verdict.accuracy.rel_err_o is None


def test_the_smallest_budget_still_checks_the_last_head(monkeypatch: pytest.MonkeyPatch) -> None:
    def last_head(q: Tensor, k: Tensor, v: Tensor, S: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        after = decay * S + _outer(k, v)
        o = _query(q, after)
        after[-1, -1] *= 1.01
        return o, after

    monkeypatch.setattr(accuracy, "_BUDGET", {"cpu": 1})
    assert "state is off by 1.00e-02" in str(_check(_state_step(last_head)).fault)


# ---------------------------------------------------------------- work and memory

WORK: list[tuple[dict[str, Any], Kept, float, int]] = [
    # per head with D = E = 64: 4 D^2 FLOPs; the fp32 state read and written; q, k, v, o at 2 bytes
    ({}, "state", 6 * 16_384, 6 * (2 * 4 * 4096 + 4 * 64 * 2)),
    ({"seq_len": 10**6}, "state", 6 * 16_384, 6 * (2 * 4 * 4096 + 4 * 64 * 2)),
    ({"value_dim": 32}, "state", 6 * 8_192, 6 * (2 * 4 * 2048 + 2 * (64 + 32) * 2)),
    # per head and token: 4 D FLOPs; k and v at 2 bytes; besides q and o
    ({}, "caches", 6 * 100 * 256, 6 * (100 * 2 * 64 * 2 + 2 * 64 * 2)),
    ({"dtype": "fp32"}, "caches", 6 * 100 * 256, 6 * (100 * 2 * 64 * 4 + 2 * 64 * 4)),
    ({"value_dim": 32}, "caches", 6 * 100 * 192, 6 * (100 * 96 * 2 + 96 * 2)),
    ({"kv_heads": 1}, "caches", 6 * 100 * 256, 2 * (100 * 2 * 64 * 2 + 3 * 2 * 64 * 2)),
]


@pytest.mark.parametrize(("changes", "kept", "flops", "moved"), WORK, ids=str)
def test_the_work_of_a_step(changes: dict[str, Any], kept: Kept, flops: float, moved: int) -> None:
    case = _case(**{"heads": 3, "seq_len": 100, "head_dim": 64, "dtype": "bf16", **changes})
    assert step_flops(case, kept=kept) == flops
    assert step_bytes(case, kept=kept) == moved


def test_a_decode_puts_out_one_token_of_each_sequence() -> None:
    case = _case(batch=8, seq_len=1024)
    assert case.tokens == 8
    assert case.case_id == "m.decode.B8-H4-N1024-D16.fp32"
    assert not case.workload.has_backward


def _memory(mechanism: str, **changes: Any) -> Any:
    case = _case(mechanism, **changes)
    provider = support(case, device="cpu")
    assert isinstance(provider, Provider)
    semantics = SEMANTICS[find(mechanism).semantics]
    make = partial(prepare, case, provider=provider, semantics=semantics, device=CPU, seed=0)
    return memory_pass(case, prepare=make, device=CPU, state_bytes=0)


def test_what_is_kept_is_an_input_and_no_output() -> None:
    state, token, slopes = 2 * 4 * 16 * 16 * 4, 2 * 4 * 16 * 4, 4 * 4
    memory = _memory("lightning2")
    assert (
        memory.input_bytes == 3 * token + state + 2 * slopes
    )  # the decay factors are made once, before the step
    assert memory.output_bytes == token
    assert memory.peak_bytes - memory.input_bytes == token  # the step makes o and nothing else
    assert (memory.saved_bytes, memory.workspace_bytes) == (0, 0)
    memory = _memory("sdpa", seq_len=500)
    assert memory.input_bytes == 3 * token + 2 * 500 * token
    assert memory.output_bytes == token


# ---------------------------------------------------------------- providers


def _stub(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


def _fresh(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """An adapter imported beside stubs, and forgotten again."""
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    return module


def test_steps_of_lightning2_follow_each_other() -> None:
    q, k, v = (_random(2, 3, 20, width).float() for width in (16, 16, 24))
    slopes = geometric_slopes(3)
    whole = lightning_torch.lightning2(q, k, v, slopes=slopes, scale=0.5, causal=True)
    state = torch.zeros(2, 3, 16, 24)
    for t in range(20):
        o, after = right_state(q[:, :, t], k[:, :, t], v[:, :, t], state, slopes=slopes, scale=0.5)()
        assert after is state
        torch.testing.assert_close(o, whole[:, :, t], rtol=1e-4, atol=1e-4)
    assert right_state(q[:, :, 0], k[:, :, 0], v[:, :, 0], state, slopes=None, scale=1.0)()[0].shape == (
        2,
        3,
        24,
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_triton_step_in_the_interpreter(dtype: str) -> None:
    if not importlib.import_module("attnbench.kernels._host").interpreting():
        pytest.skip("needs TRITON_INTERPRET=1")
    adapter = importlib.import_module("attnbench.baselines.lightning_triton").lightning2_decode
    case = _case(batch=1, heads=2, head_dim=32, value_dim=48, dtype=dtype)
    assert _check(adapter, case=case).fault is None


@pytest.mark.parametrize("decode", [sdpa.sdpa_decode, sdpa.sdpa_flash_decode], ids=lambda f: f.__name__)
def test_softmax_steps_refuse_slopes(decode: Decode) -> None:
    x, cache = torch.zeros(1, 2, 8), torch.zeros(1, 2, 5, 8)
    with pytest.raises(ValueError, match="slopes"):
        decode(x, x, x, cache, cache, slopes=torch.ones(2), scale=1.0)


def test_torchs_flash_step_is_right() -> None:
    assert (
        _check(sdpa.sdpa_flash_decode, family="softmax").fault is None
    )  # on the CPU: another kernel of that name


def test_flash2_hands_the_token_and_the_length_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[Tensor] = []

    def with_kvcache(q: Tensor, k_cache: Tensor, v_cache: Tensor, **given: Any) -> Tensor:
        """As flash-attn's, in plain torch: appends in place, then attends to what the length says."""
        lengths.append(given["cache_seqlens"])
        (n,) = set(given["cache_seqlens"].tolist())
        k_cache[:, n], v_cache[:, n] = given["k"][:, 0], given["v"][:, 0]
        seen = (x[:, : n + 1].transpose(1, 2) for x in (k_cache, v_cache))
        assert given["causal"]
        o = sdpa.sdpa(q.transpose(1, 2), *seen, slopes=None, scale=given["softmax_scale"], causal=False)
        return o.transpose(1, 2)

    members = {"flash_attn_func": None, "flash_attn_with_kvcache": with_kvcache}
    _stub(monkeypatch, "flash_attn")
    _stub(monkeypatch, "flash_attn.flash_attn_interface", **members)
    module = _fresh(monkeypatch, "attnbench.baselines.flash_attn")
    case = _case(kv_heads=2)
    calls = _calls(module.flash2_decode, case=case, family="softmax", layout="BNHD")
    expected = expect_step(case, calls=calls, semantics=SEMANTICS["softmax"], device=CPU)
    for _ in range(2):  # a repeated step is the same step
        assert judge_step(case, got=calls.outputs(), calls=calls, expected=expected).fault is None
    assert lengths[0] is lengths[1]
    assert (lengths[0].dtype, lengths[0].tolist()) == (torch.int32, [36, 36])
    with pytest.raises(ValueError, match="slopes"):
        module.flash2_decode(*calls.inputs.kept[:1] * 5, slopes=torch.ones(4), scale=1.0)


def test_fla_gets_its_layout_and_its_logarithm(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def fused_recurrent(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """As fla's, in plain torch: one token in [B, N, H, D], and a state of its own."""
        given.append(options)
        decay = torch.exp(options["g_gamma"])[:, None, None]
        after = decay * options["initial_state"] + _outer(k[:, 0], v[:, 0])
        return options["scale"] * _query(q[:, 0], after)[:, None], after

    _stub(monkeypatch, "fla")
    _stub(monkeypatch, "fla.ops")
    _stub(monkeypatch, "fla.ops.simple_gla", fused_recurrent_simple_gla=fused_recurrent)
    module = _fresh(monkeypatch, "attnbench.baselines.fla_decode")
    assert _check(module.simple_gla_decode, case=_case(value_dim=24)).fault is None
    assert set(given[0]) == {"g_gamma", "scale", "initial_state", "output_final_state"}
    assert given[0]["output_final_state"]


# ---------------------------------------------------------------- from the command line


def test_the_preset_on_a_machine_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ["--device", "cpu", "--seq-len", "256,4k", "--batch", "2", "-m", "lightning2,sdpa,lightning1"]
    monkeypatch.setattr(
        sys, "argv", ["attnbench", "sweep", "decode", *options, "--cap-s", "0.2", "-o", "run", "--resume"]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = capsys.readouterr()
    assert end.value.code in (0, None), printed.err
    assert "There is no run in run yet: it begins there.\n" in printed.err
    assert "Decode, batch 2, 4 heads, head dim 32, fp32, causal" in printed.out
    assert (
        "lightning1 (decode): unsupported at every length (2 cases): workload decode is not defined"
        in " ".join(printed.out.split())
    )
    figures = {f.name for f in (tmp_path / "run" / "figures").iterdir()}
    assert {f"{stem}.decode.svg" for stem in ("tokens-per-s", "time", "memory")} < figures
    frame = load_results("run")
    right = frame[frame["status"] == "ok"]
    assert sorted(right["mechanism"]) == ["lightning2", "lightning2", "sdpa", "sdpa"]
    assert set(right["provider"].str.split().str[-1]) == {"recurrence", "sdpa"}
    for row in right.to_dict("records"):
        assert row["tokens_per_s"] == pytest.approx(2 / (row["median_ms"] * 1e-3))
        kept: Kept = "state" if row["mechanism"] == "lightning2" else "caches"
        case = Case(
            **{name: row[name] for name in ("mechanism", "batch", "heads", "seq_len", "head_dim", "dtype")},
            workload=Workload.DECODE,
        )
        seconds = row["median_ms"] * 1e-3
        assert row["gbps"] == pytest.approx(step_bytes(case, kept=kept) / seconds / 1e9)
        assert row["tflops"] == pytest.approx(step_flops(case, kept=kept) / seconds / 1e12)
        assert row["roofline"] > 0
        assert row["rel_err_o"] <= TOLERANCES["fp32"]


def test_a_wrong_state_is_a_row_without_a_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_torch, "lightning2_decode", _state_step(state_left_behind))
    row = runner.measure(_case("lightning2"), protocol=Protocol(), device=CPU, ceilings=None)
    assert row.status is Status.INCORRECT
    assert "state is off by" in str(row.reason)
    assert row.timing is None


# ---------------------------------------------------------------- on the card

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ON_THE_CARD = [
    ("lightning2", "attnbench.baselines.lightning_triton:lightning2_decode"),
    ("flash2", "attnbench.baselines.flash_attn:flash2_decode"),
    ("sdpa", "attnbench.baselines.sdpa:sdpa_decode"),
]
SHORT: dict[str, Any] = {"min_device_s": 0.01, "warmup_s": 0.01, "cap_s": 0.2}


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("launch", Launch, ids=str)
@pytest.mark.parametrize("seq_len", [1, 2, 1000], ids=lambda n: f"N{n}")
@pytest.mark.parametrize(("mechanism", "target"), ON_THE_CARD, ids=[name for name, _ in ON_THE_CARD])
def test_a_decode_on_the_card(mechanism: str, target: str, seq_len: int, launch: Launch) -> None:
    case = _case(mechanism, seq_len=seq_len, head_dim=64, dtype="bf16")
    provider = support(case, device="cuda")
    assert isinstance(provider, Provider)
    if mechanism != "flash2":  # that has two providers, and either will do
        assert provider.target == target
    row = runner.measure(
        case, protocol=Protocol(launch=launch, **SHORT), device=torch.device("cuda"), ceilings=None
    )
    assert (row.status, row.reason) == (Status.OK, None)
    assert row.timing is not None
    assert row.kernels
    assert row.memory.input_bytes is not None
    assert row.memory.peak_bytes is not None
    assert row.memory.peak_bytes >= row.memory.input_bytes


@pytest.mark.gpu
@NEEDS_CUDA
def test_torchs_flash_step_on_the_card() -> None:
    """Where flash-attn is installed no case reaches it, so the step is called by itself."""
    case = _case("flash2", seq_len=300, head_dim=64, dtype="bf16", kv_heads=4)
    i = build(case, semantics=SEMANTICS["softmax"], layout="BHND", device=torch.device("cuda"), seed=0)
    step = sdpa.sdpa_flash_decode(i.q, i.k, i.v, *i.kept, slopes=None, scale=i.scale)
    calls = DecodeCalls(inputs=i, step=step, names=KEPT["caches"])
    expected = expect_step(case, calls=calls, semantics=SEMANTICS["softmax"], device=i.q.device)
    assert judge_step(case, got=calls.outputs(), calls=calls, expected=expected).fault is None


@pytest.mark.gpu
@NEEDS_CUDA
def test_a_replayed_step_goes_on_from_the_state_that_the_last_one_left() -> None:
    case = _case("lightning2", head_dim=64, dtype="bf16")
    provider = support(case, device="cuda")
    assert isinstance(provider, Provider)
    semantics = SEMANTICS["decay-linear"]
    calls = prepare(case, provider=provider, semantics=semantics, device=torch.device("cuda"), seed=0)
    assert isinstance(calls, DecodeCalls)
    calls.inference()
    replay = runner.launched(lambda: calls.timed(Workload.DECODE), launch=Launch.GRAPH)
    for _ in range(3):
        expected = expect_step(case, calls=calls, semantics=semantics, device=torch.device("cuda"))
        replay()
        torch.cuda.synchronize()
        (state,) = calls.inputs.kept
        truth = expected.reference.kept[0]
        got = state[expected.batch, expected.kv_head].double()
        assert float((got - truth).norm() / truth.norm()) < 1e-6


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("launch", Launch, ids=str)
def test_fla_decodes_on_the_card(launch: Launch) -> None:
    if importlib.util.find_spec("fla") is None:
        pytest.skip("fla is not installed")
    module = importlib.import_module("attnbench.baselines.fla_decode")
    case = _case("m", head_dim=64, value_dim=128, dtype="bf16")
    device = torch.device("cuda")
    i = build(case, semantics=SEMANTICS["decay-linear"], layout="BNHD", device=device, seed=0)
    step = module.simple_gla_decode(i.q, i.k, i.v, *i.kept, slopes=i.slopes, scale=i.scale)
    calls = DecodeCalls(inputs=i, step=step, names=KEPT["state"])
    expected = expect_step(case, calls=calls, semantics=SEMANTICS["decay-linear"], device=device)
    assert judge_step(case, got=calls.outputs(), calls=calls, expected=expected).fault is None
    runner.launched(lambda: calls.timed(Workload.DECODE), launch=launch)()
    torch.cuda.synchronize()


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("workload", [Workload.FWD, Workload.BWD, Workload.FWD_BWD], ids=str)
def test_whole_sequences_are_replayed_too(workload: Workload) -> None:
    """A backward runs on the stream of its forward, which must be the one that is captured."""
    case = dataclasses.replace(_case("lightning2", head_dim=64, dtype="bf16"), workload=workload)
    protocol = Protocol(launch=Launch.GRAPH, min_device_s=0.01, cap_s=0.1)
    done = runner.measure(case, protocol=protocol, device=torch.device("cuda"), ceilings=None)
    assert (done.status, done.reason) == (Status.OK, None)
    assert done.timing is not None


@pytest.mark.gpu
@NEEDS_CUDA
def test_an_eager_hot_sample_is_no_shorter_than_a_replayed_one() -> None:
    """What the preset says of host time: in an eager sample with nothing to hide it, the host's share is there."""
    case = _case("lightning2", batch=1, head_dim=64, dtype="bf16")
    medians = []
    for launch in (Launch.GRAPH, Launch.EAGER):
        protocol = Protocol(launch=launch, cache=Cache.HOT, **SHORT)
        row = runner.measure(case, protocol=protocol, device=torch.device("cuda"), ceilings=None)
        assert row.timing is not None
        medians.append(row.timing.median_ms)
    assert medians[0] < medians[1]
