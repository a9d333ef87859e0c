"""What `attnbench verify` checks of a mechanism: lengths, and the axes that its provider takes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import torch

import attnbench
from attnbench import mechanism_files, store
from attnbench.case import Accuracy, Case, Measurement, Protocol, Status, Workload
from attnbench.errors import UserError
from attnbench.executors.supervised import NoWorkerError, Row, SupervisedWorker
from attnbench.measure.clock import now_s
from attnbench.measure.pretending import VARIABLE, VISIBLE, pretended
from attnbench.registry import Provider, find, mechanisms
from attnbench.verification import checking, kept, scope
from attnbench.verification.checking import End, Listener, Outcome, jobs_on
from attnbench.verification.page import page
from attnbench.verification.plan import Group, Kind, Pace, Plan, groups_of

LENGTHS = (1, 65, 200, 2000)


def _cases(mechanism: str, *, device: str = "cpu", seq_lens: tuple[int, ...] = LENGTHS) -> list[Case]:
    return scope.cases(
        mechanisms=[mechanism], dtypes=["fp32"], seq_lens=seq_lens, dims=[(16, 16)], device=device
    )


def test_a_causal_mechanism_is_checked_at_every_length() -> None:
    cases = _cases("linear-elu")
    assert [c.seq_len for c in cases] == list(LENGTHS)
    assert all(c.causal and c.kv_heads == c.heads and c.window is None for c in cases)


def test_what_a_provider_takes_besides_is_checked_at_one_length() -> None:
    cases = _cases("sdpa-math")
    others = [c for c in cases if c.kv_heads != c.heads or not c.causal]
    assert [(c.seq_len, c.heads, c.kv_heads, c.causal) for c in others] == [
        (200, 3, 1, True),
        (200, 4, 2, True),  # which of two heads is shared by whom
        (200, 3, 3, False),
    ]
    assert len(cases) == len(LENGTHS) + 3


def test_a_decode_is_checked_without_them() -> None:
    cases = _cases("sdpa")
    assert Counter(c.workload for c in cases) == {
        Workload.FWD_BWD: len(LENGTHS) + 3,
        Workload.DECODE: len(LENGTHS),
    }
    assert {(c.kv_heads, c.causal) for c in cases if c.workload is Workload.DECODE} == {(3, True)}


def test_windows_are_narrow_and_wide() -> None:
    cases = _cases("streaming-llm")
    assert {c.window for c in cases if c.seq_len != 200} == {scope.WINDOW}
    assert [c.window for c in cases if c.seq_len == 200] == [37, 37, 37, *scope.OTHER_WINDOWS]
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
    wanted = scope.cases(
        mechanisms=names, dtypes=["bf16"], seq_lens=LENGTHS, dims=[(64, 64), (128, 128), (64, 128)], device="cuda"
    )  # fmt: skip
    groups = groups_of(wanted, device="cuda")
    order = list(dict.fromkeys(group.name.split()[0] for group in groups))
    assert order[:2] == ["fla-simple-gla", "flex"]
    assert order[-1] == "xformers"
    tuning = [group.name for group in groups if group.name.startswith("fla")]
    widths = [
        "head dim 128",
        "head dim 64, value dim 128",
        "head dim 64",
    ]  # each is tuned for, wide ones for longer
    assert tuning == [f"fla-simple-gla (bf16, {width})" for width in widths]
    assert sorted(place for group in groups for place in group.places) == list(range(len(wanted)))
    for group in groups:
        shared = {
            (c.mechanism, c.dtype, c.head_dim, c.value_dim) for c in map(wanted.__getitem__, group.places)
        }
        assert len(shared) == 1


MECHANISMS = ["linear-quadratic", "sdpa-math", "linear-cumsum"]
WANTED = [case for name in MECHANISMS for case in _cases(name, seq_lens=(1, 17))]


def _verify(**options: Any) -> Outcome:
    given: dict[str, Any] = {"device": "cpu", "seed": 0, "jobs": 2, "listener": Listener(), **options}
    return checking.verify(WANTED, **given)


class Played(SupervisedWorker):
    """A worker without a process, whose environment says which GPU it was given."""

    checked: ClassVar[list[tuple[str, str | None]]] = []  # case_id, GPU
    dying: ClassVar[str | None] = None  # a GPU that is lost at the second case
    _rows = 0

    @property
    def gpu(self) -> str | None:
        return self.interpreter.variables.get(VISIBLE)

    @contextlib.contextmanager
    def running(self) -> Iterator[Played]:
        model = "H200 (pretended)" if pretended() else "processor"
        index = None if self.gpu is None else int(self.gpu)
        self.environment = {"device": model, "device_type": "cpu", "node": "a", "gpu_index": index}
        yield self

    def row(self, case: Case, *, verify_only: bool = False) -> Row:
        self._rows += 1
        if self._rows > 1 and self.gpu is not None and self.gpu == self.dying:
            raise NoWorkerError("no device")
        self.checked.append((case.case_id, self.gpu))
        wrong = case.mechanism == "linear-cumsum" and case.seq_len == 17
        if wrong:
            return self.unmeasured(case, status=Status.INCORRECT, reason="o is off by 1.0")
        done = Measurement(case=case, status=Status.OK, accuracy=Accuracy(rel_err_o=case.seq_len / 1e9))
        return store.row(done, run_id=self.run_id)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> type[Played]:
    """Workers that play, and have checked nothing yet."""
    monkeypatch.setattr(Played, "checked", [])
    monkeypatch.setattr(checking, "SupervisedWorker", Played)
    return Played


def test_who_ends_last_is_told_of_once_nothing_is_left_to_begin(
    monkeypatch: pytest.MonkeyPatch, played: type[Played]
) -> None:
    """The group of most cases takes until it was told of; the other worker has the rest meanwhile."""
    begun, told = threading.Event(), threading.Event()
    waiting: list[Sequence[str]] = []

    class Waiting(Played):
        def row(self, case: Case, *, verify_only: bool = False) -> Row:
            if case.mechanism == "sdpa-math":
                begun.set()
                assert told.wait(30)
            else:
                assert begun.wait(30)
            return super().row(case)

    def tell(names: Sequence[str]) -> None:
        waiting.append(names)
        told.set()

    monkeypatch.setattr(checking, "SupervisedWorker", Waiting)
    outcome = _verify(listener=Listener(waiting=tell))
    assert waiting == [("sdpa-math (fp32, head dim 16)",)]
    assert len(played.checked) == len(WANTED)
    assert [f.mechanism for f in outcome.findings] == MECHANISMS  # as they were asked


def test_an_interruption_ends_all_workers_and_the_next_sitting_finds_the_rest(tmp_path: Path) -> None:
    """In real processes."""
    rows: list[Row] = []
    earlier: list[int] = []

    def interrupt(row: Row, progress: Any) -> None:
        rows.append(row)
        raise KeyboardInterrupt

    assert _verify(folder=tmp_path, listener=Listener(finished=interrupt)).end is End.INTERRUPTED
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=5)
    assert not [p for p in alive if "attnbench" in " ".join(p.cmdline())]

    listener = Listener(finished=lambda row, _: rows.append(row), earlier=earlier.append)
    outcome = _verify(folder=tmp_path, listener=listener)
    assert (outcome.end, outcome.left) == (End.DONE, 0)
    assert [(f.mechanism, f.shapes) for f in outcome.findings] == list(
        zip(MECHANISMS, (2, 5, 2), strict=True)
    )
    assert {f.status for f in outcome.findings} == {Status.OK}
    assert 1 <= earlier[0] <= 2  # the other worker may have had its row at the same moment
    assert sorted(r["case_id"] for r in rows) == sorted(c.case_id for c in WANTED)


# ---------------------------------------------------------------- several GPUs


def test_workers_take_gpus_in_turns(monkeypatch: pytest.MonkeyPatch, played: type[Played]) -> None:
    monkeypatch.setenv(VARIABLE, "a:H200,H200,H200")
    monkeypatch.setenv(VISIBLE, "2,0")
    made: list[Played] = []

    def make(**given: Any) -> Played:
        made.append(played(**given))
        return made[-1]

    monkeypatch.setattr(checking, "SupervisedWorker", make)
    assert _verify(jobs=3).end is End.DONE
    assert [worker.gpu for worker in made] == ["2", "0", "2"]
    assert len(made[0].lock) == 2  # both are held
    assert sorted(case_id for case_id, _ in played.checked) == sorted(c.case_id for c in WANTED)


@pytest.mark.parametrize(
    ("gpus", "cores", "jobs"),
    [(1, 64, 8), (1, 12, 6), (2, 32, 16), (2, 24, 12), (8, 128, 64), (4, 4, 4), (1, 1, 1)],
    ids=lambda number: str(number),
)
def test_as_many_workers_as_cores_and_gpus_bear(
    monkeypatch: pytest.MonkeyPatch, gpus: int, cores: int, jobs: int
) -> None:
    monkeypatch.setattr(checking, "visible_gpus", lambda kind: ("gpu",) * gpus)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert jobs_on("cuda") == jobs


def test_a_lost_gpu_leaves_its_cases_to_the_other(
    monkeypatch: pytest.MonkeyPatch, played: type[Played]
) -> None:
    monkeypatch.setenv(VARIABLE, "a:H200,H200")
    monkeypatch.setattr(played, "dying", "1")
    assert _verify().end is End.DONE
    assert sorted(case_id for case_id, _ in played.checked) == sorted(c.case_id for c in WANTED)
    assert [gpu for _, gpu in played.checked].count("1") <= 1


def test_where_no_worker_starts_any_more_the_rest_is_left_and_not_called_wrong(
    monkeypatch: pytest.MonkeyPatch, played: type[Played]
) -> None:
    monkeypatch.setenv(VARIABLE, "a:H200,H200")
    monkeypatch.setenv(VISIBLE, "1,1")
    monkeypatch.setattr(played, "dying", "1")
    outcome = _verify()
    assert (outcome.end, outcome.left) == (End.LOST, len(WANTED) - len(played.checked))
    assert sum(f.left for f in outcome.findings) == outcome.left
    assert not any(f.faults for f in outcome.findings if f.mechanism != "linear-cumsum")
    unseen = [f for f in outcome.findings if f.left and not f.shapes]
    assert {f.status for f in unseen} <= {None}


# ---------------------------------------------------------------- sittings


def _broken_off(folder: Path, *, after: int, **options: Any) -> Outcome:
    """A sitting that Ctrl-C ends when so many rows have come."""
    count = itertools.count(1)

    def finished(row: Row, progress: Any) -> None:
        if next(count) == after:
            raise KeyboardInterrupt

    return _verify(folder=folder, jobs=1, listener=Listener(finished=finished), **options)


def test_sittings_find_what_one_would_and_check_nothing_twice(tmp_path: Path, played: type[Played]) -> None:
    at_once = _verify()
    played.checked.clear()
    assert _broken_off(tmp_path / "v", after=3).end is End.INTERRUPTED
    second = _broken_off(tmp_path / "v", after=2)
    assert (second.end, second.left) == (End.INTERRUPTED, len(WANTED) - 5)
    assert _verify(folder=tmp_path / "v") == at_once
    assert sorted(case_id for case_id, _ in played.checked) == sorted(c.case_id for c in WANTED)
    wrong = at_once.findings[-1]
    assert (wrong.mechanism, wrong.status) == ("linear-cumsum", Status.INCORRECT)


def test_a_line_that_was_not_written_to_its_end_is_checked_again(
    tmp_path: Path, played: type[Played]
) -> None:
    whole = _verify(folder=tmp_path)
    file = tmp_path / kept.FILE
    file.write_bytes(file.read_bytes()[:-30])
    played.checked.clear()
    assert _verify(folder=tmp_path) == whole
    assert len(played.checked) == 1
    assert _verify(folder=tmp_path) == whole
    assert len(played.checked) == 1


def test_another_seed_device_or_source_is_checked_anew(
    tmp_path: Path, played: type[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    def checks(**options: Any) -> int:
        played.checked.clear()
        assert _verify(folder=tmp_path / "v", **options).left == 0
        return len(played.checked)

    table, source = tmp_path / "table.toml", tmp_path / "attnbench" / "kernels" / "scan.py"
    source.parent.mkdir(parents=True)
    monkeypatch.setattr(attnbench, "__file__", str(tmp_path / "attnbench" / "__init__.py"))
    monkeypatch.setenv("ATTNBENCH_CONFIGS", str(table))
    for file in (table, source):
        file.write_text("before")
    assert checks() == len(WANTED)
    assert checks(seed=1) == len(WANTED)
    monkeypatch.setenv(VARIABLE, "a:H200,H200")
    assert checks() == len(WANTED)  # on both models of GPUs, which are one
    monkeypatch.setenv(VISIBLE, "1")
    assert checks() == 0  # whichever of them it is
    for file in (table, source):
        file.write_text("after")
        assert checks() == len(WANTED)
        file.write_text("before")
        assert checks() == 0


def test_a_source_changes_the_digest_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "kernels" / "deep").mkdir(parents=True)
    file = tmp_path / "kernels" / "deep" / "scan.py"
    found = set()
    for text in ("BLOCK = 64", "BLOCK = 32", ""):
        file.write_text(text)
        found.add(kept.sources_digest([tmp_path / "kernels"]))
    (file.parent / "scan.pyc").write_text("compiled")
    assert kept.sources_digest([tmp_path / "kernels"]) in found
    file.rename(file.parent / "other.py")
    found.add(kept.sources_digest([tmp_path / "kernels"]))
    assert len(found) == 4


def test_a_kernel_of_ones_own_is_checked_anew_when_its_file_changes(
    tmp_path: Path, played: type[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(mechanism_files.VARIABLE, "")
    file = tmp_path / "mine.py"
    file.write_text("def mine(q, k, v, **given):\n    return v\n")
    records = []
    try:
        mechanism_files.remember(f"{file}:mine:softmax")
        mechanisms.cache_clear()
        for text in ("", "# changed\n"):
            file.write_text(file.read_text() + text)
            new = kept.Records(Protocol())
            where = {"device_type": "cpu"}
            records.append([new.of(name, environment=where)["run_id"] for name in ("mine", "sdpa-math")])
    finally:
        monkeypatch.undo()
        mechanisms.cache_clear()
    (mine, other), (changed, same) = records
    assert (mine != changed, other == same) == (True, True)


def test_a_folder_that_holds_something_else_is_one_sentence(tmp_path: Path, played: type[Played]) -> None:
    (tmp_path / kept.FILE).write_text('{"mechanism": "flash2"}\n')
    with pytest.raises(UserError, match="line 1, is no row of attnbench verify: choose another folder"):
        _verify(folder=tmp_path)
    with pytest.raises(UserError, match="cannot write the output folder"):
        _verify(folder=tmp_path / kept.FILE)


def test_a_folder_is_one_sittings_at_a_time(tmp_path: Path) -> None:
    with kept.keeping(tmp_path), pytest.raises(UserError, match="another attnbench"), kept.keeping(tmp_path):
        pass


# ---------------------------------------------------------------- time


def test_what_is_under_way_at_the_deadline_is_left_and_the_rest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, played: type[Played]
) -> None:
    """The slow group hangs until its worker is struck."""
    struck = threading.Event()

    class Slow(Played):
        def row(self, case: Case, *, verify_only: bool = False) -> Row:
            if case.mechanism == "sdpa-math":
                assert struck.wait(30)
                return self.unmeasured(case, status=Status.CRASHED, reason="struck")
            return super().row(case)

        def stop(self) -> None:
            struck.set()

    monkeypatch.setattr(checking, "SupervisedWorker", Slow)
    outcome = _verify(folder=tmp_path, deadline_s=now_s() + 0.5)
    assert (outcome.end, outcome.left) == (End.TIME, 5)
    assert [(f.left, f.status) for f in outcome.findings] == [
        (0, Status.OK), (5, None), (0, Status.INCORRECT),
    ]  # fmt: skip
    monkeypatch.setattr(checking, "SupervisedWorker", played)
    played.checked.clear()
    assert _verify(folder=tmp_path).left == 0
    assert len(played.checked) == 5


def test_without_time_nothing_starts(tmp_path: Path, played: type[Played]) -> None:
    outcome = _verify(folder=tmp_path / "v", deadline_s=now_s())
    assert (outcome.end, outcome.findings, played.checked) == (End.TIME, [], [])
    assert not (tmp_path / "v").exists()


def _plan(*kinds: Kind, deadline_s: float | None = None) -> Plan:
    groups = [
        Group(name=f"{kind.name} {n}", kind=kind, places=(2 * n, 2 * n + 1)) for n, kind in enumerate(kinds)
    ]
    return Plan(groups, deadline_s=deadline_s, waiting=lambda names: None)


def test_a_kind_that_takes_too_long_for_the_time_left_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("attnbench.verification.plan.now_s", lambda: now[-1])
    plan = _plan(Kind.TUNES, Kind.TUNES, Kind.PLAIN, deadline_s=220.0)
    first = plan.take(0)
    for at in (100.0, 101.0):  # the first row takes long, the others do not
        now.append(at)
        plan.checked(0)
    now.append(150.0)
    second = plan.take(0)
    assert first is not None
    assert second is not None
    assert (first.name, second.name) == ("TUNES 0", "PLAIN 2")
    assert plan.progress().groups == 2


def test_slow_groups_that_come_first_do_not_spoil_the_time_left() -> None:
    """10 groups of 4 cases at 80 s, then 100 at 2 s, by 2 workers."""
    pace = Pace(left=Counter({Kind.TUNES: 40, Kind.PLAIN: 400, Kind.ABSENT: 1000}))
    assert pace.left_s(workers=2) is None
    for _ in range(10):
        pace.left[Kind.TUNES] -= 4
        pace.ended(Kind.TUNES, cases=4, seconds=80.0)
        assert pace.left_s(workers=2) is None  # of the others nothing is known
    pace.left[Kind.PLAIN] -= 4
    pace.ended(Kind.PLAIN, cases=4, seconds=2.0)
    assert pace.left_s(workers=2) == pytest.approx(99 * 2.0 / 2)
    pace.left.clear()
    assert pace.left_s(workers=2) == 0.0


def test_a_page_tells_a_wrong_case_from_what_is_right_absent_or_left(
    tmp_path: Path, played: type[Played]
) -> None:
    rows = _verify().findings
    wrong = dataclasses.replace(
        rows[0],
        faults=("B2-H3-N17-D16: incorrect: rel_err_dq 0.5 | over 2e-05",),
        worst_status=Status.INCORRECT,
    )
    absent = dataclasses.replace(
        rows[1], shapes=0, unsupported=2, why_unsupported="not installed: pip install it"
    )
    text = page([wrong, absent, dataclasses.replace(rows[2], left=3, faults=(), worst_status=None)])
    assert f"wrong: {rows[0].mechanism} in fp32; 1 unsupported; 3 cases left to check." in text
    assert "1 pair of mechanism and dtype right" in text
    assert f"| {rows[2].mechanism} | fp32 |" in text
    assert "right, 3 left |" in text
    assert "incorrect: rel\\_err\\_dq 0.5 \\| over" in text  # the bar ends no cell
    assert f"- {rows[1].mechanism} fp32: not installed: pip install it" in text
