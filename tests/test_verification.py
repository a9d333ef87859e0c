"""What `attnbench verify` checks of a mechanism: lengths, and the axes that its provider takes."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import psutil
import pytest
import torch

from attnbench import verification
from attnbench.case import Case, Status, Workload
from attnbench.executors.supervised import Row, SupervisedWorker
from attnbench.registry import Provider, find

LENGTHS = (1, 65, 200, 2000)


def _cases(mechanism: str, *, device: str = "cpu", seq_lens: tuple[int, ...] = LENGTHS) -> list[Case]:
    return verification.cases(
        mechanisms=[mechanism], dtypes=["fp32"], seq_lens=seq_lens, dims=[(16, 16)], device=device
    )


def test_a_causal_mechanism_is_checked_at_every_length() -> None:
    cases = _cases("linear-elu")
    assert [c.seq_len for c in cases] == list(LENGTHS)
    assert all(c.causal and c.kv_heads == c.heads and c.window is None for c in cases)


def test_what_a_provider_takes_besides_is_checked_at_one_length() -> None:
    cases = _cases("sdpa-math")
    others = [c for c in cases if c.kv_heads != c.heads or not c.causal]
    assert [(c.seq_len, c.kv_heads, c.causal) for c in others] == [(200, 1, True), (200, 3, False)]
    assert len(cases) == len(LENGTHS) + 2


def test_a_decode_is_checked_without_them() -> None:
    cases = _cases("sdpa")
    assert Counter(c.workload for c in cases) == {
        Workload.FWD_BWD: len(LENGTHS) + 2,
        Workload.DECODE: len(LENGTHS),
    }
    assert {(c.kv_heads, c.causal) for c in cases if c.workload is Workload.DECODE} == {(3, True)}


def test_windows_are_narrow_and_wide() -> None:
    cases = _cases("streaming-llm")
    assert {c.window for c in cases if c.seq_len != 200} == {verification.WINDOW}
    assert [c.window for c in cases if c.seq_len == 200] == [37, 37, *verification.OTHER_WINDOWS]
    assert all(c.causal for c in cases)


def test_where_every_shape_is_compiled_few_are_asked() -> None:
    provider = find("flex").provider_for("cuda")
    assert isinstance(provider, Provider)
    assert provider.compiles_each_shape
    assert [c.seq_len for c in _cases("flex", device="cuda") if c.causal and c.kv_heads == 3] == [65]
    assert {c.seq_len for c in _cases("flex", device="cuda", seq_lens=(1, 2))} == {1, 2}  # if asked for


def test_an_absent_mechanism_is_asked_once_a_length() -> None:
    assert len(_cases("sdpa-cudnn", device="cpu")) == len(LENGTHS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for the mechanisms of a machine without a GPU")
@pytest.mark.parametrize("mechanism", ["retnet", "sdpa", "streaming-llm"])
def test_the_other_axes_are_right(mechanism: str) -> None:
    from attnbench.case import Protocol, Status
    from attnbench.measure.runner import measure

    for case in _cases(mechanism, seq_lens=(33,)):
        row = measure(case, protocol=Protocol(), device=torch.device("cpu"), ceilings=None, verify_only=True)
        assert row.status is Status.OK, (case.case_id, row.reason)


def test_what_tunes_in_its_first_calls_is_begun_first_and_then_what_compiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the many cases of others; what is absent, and costs nothing, comes last. No case is left out."""
    monkeypatch.setattr(Provider, "available", property(lambda provider: provider.package in (None, "fla")))
    names = ("xformers", "lightning2", "flex", "fla-simple-gla", "sdpa-math")
    wanted = verification.cases(
        mechanisms=names, dtypes=["bf16"], seq_lens=LENGTHS, dims=[(64, 64), (128, 128), (64, 128)], device="cuda"
    )  # fmt: skip
    groups = verification._groups(wanted, device="cuda")
    order = list(dict.fromkeys(group.name.split()[0] for group in groups))
    assert order[:2] == ["fla-simple-gla", "flex"]
    assert order[-1] == "xformers"
    assert groups[0].name == "fla-simple-gla (bf16, head dim 64)"  # two widths of values
    assert sorted(place for group in groups for place in group.places) == list(range(len(wanted)))
    for group in groups:
        assert len({(wanted[n].mechanism, wanted[n].dtype, wanted[n].head_dim) for n in group.places}) == 1


WANTED = [
    case for name in ("linear-quadratic", "sdpa-math", "linear-cumsum") for case in _cases(name, seq_lens=(1, 17))
]  # fmt: skip


def _verify(finished: Callable[[Row], None], *, jobs: int) -> list[verification.Finding]:
    return verification.verify(WANTED, device="cpu", seed=0, jobs=jobs, finished=finished)


def test_who_ends_last_is_told_of_once_nothing_is_left_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The group of most cases takes until it was told of; the other worker has the rest meanwhile."""
    begun, told = threading.Event(), threading.Event()
    waiting: list[Sequence[str]] = []

    class Played(SupervisedWorker):
        @contextlib.contextmanager
        def running(self) -> Iterator[Played]:
            yield self

        def row(self, case: Case, *, verify_only: bool = False) -> Row:
            if case.mechanism == "sdpa-math":
                begun.set()
                assert told.wait(30)
            else:
                assert begun.wait(30)
            return self.unmeasured(case, status=Status.UNSUPPORTED, reason="played")

    def tell(names: Sequence[str]) -> None:
        waiting.append(names)
        told.set()

    monkeypatch.setattr(verification, "SupervisedWorker", Played)
    rows: list[Row] = []
    found = verification.verify(
        WANTED, device="cpu", seed=0, jobs=2, finished=rows.append, waiting=tell
    )  # fmt: skip
    assert waiting == [("sdpa-math (fp32, head dim 16)",)]
    assert len(rows) == len(WANTED)
    assert [f.mechanism for f in found] == [
        "linear-quadratic",
        "sdpa-math",
        "linear-cumsum",
    ]  # as they were asked


def test_workers_at_once_find_everything_once() -> None:
    rows: list[Row] = []
    found = _verify(rows.append, jobs=2)
    assert [(f.mechanism, f.shapes) for f in found] == [
        ("linear-quadratic", 2),
        ("sdpa-math", 4),
        ("linear-cumsum", 2),
    ]
    assert {f.status for f in found} == {Status.OK}
    assert len({r["case_id"] for r in rows}) == len(rows) == 8


def test_an_interruption_ends_all_workers() -> None:
    def interrupt(row: Row) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _verify(interrupt, jobs=2)
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=5)
    assert not [p for p in alive if "attnbench" in " ".join(p.cmdline())]
