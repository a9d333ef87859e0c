"""Compiled blocks: one graph each, the gradients of what is written, and honest rows where that fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from attnbench.kernels import lightning1, lightning2
from attnbench.models import attention, compiling, running, training
from attnbench.models.compiling import CompilationError, compile_blocks
from attnbench.models.distributed import Ranks
from attnbench.models.model import Checkpointing, LanguageModel
from attnbench.models.shapes import SHAPES, family_of
from attnbench.models.training import TrainRequest, measure_train_step
from attnbench.registry import find

# The compiler looks at `.grad` of whatever it is given, which torch warns of.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
CPU = torch.device("cpu")
STEP = TrainRequest(
    size="tiny", attention="sdpa", seq_len=16, tokens=32, checkpointing="selective", precision="fp32", compiled=True,
    warmup=2, steps=2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    with compiling.fresh():
        yield


@pytest.fixture
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card's providers of lightning attention, in Triton's interpreter."""
    if torch.cuda.is_available():
        pytest.skip("on a card the kernels take no tensors of the CPU")
    monkeypatch.setattr(attention, "provider_of", lambda name, device: find(name).providers[0])


@pytest.fixture
def untuned(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Measurements compile with another backend than inductor, which takes seconds for each block."""

    def replace(backend: Any) -> None:
        def by_it(model: LanguageModel) -> None:
            compile_blocks(model, backend=backend)

        monkeypatch.setattr(training, "compile_blocks", by_it)

    return replace


def _model(name: str, checkpointing: Checkpointing, *, layers: int = 3) -> LanguageModel:
    torch.manual_seed(0)
    shape = dataclasses.replace(SHAPES["tiny"][family_of(name)], layers=layers)
    return LanguageModel(shape, attention=name, device=CPU, checkpointing=checkpointing)


def _step(model: LanguageModel) -> list[torch.Tensor]:
    """The loss of one small step, and all gradients."""
    tokens = torch.randint(256, (1, 18), generator=torch.Generator().manual_seed(3))
    loss = model(tokens[:, :-1], tokens[:, 1:])
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


def _alike(name: str, checkpointing: Checkpointing, *, backend: Any) -> None:
    model = _model(name, checkpointing)
    expected = _step(model)
    compile_blocks(model, backend=backend)
    for found, written in zip(_step(model), expected, strict=True):
        torch.testing.assert_close(found, written, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "checkpointing", "graphs"),
    [("lightning2", "selective", 2), ("sdpa", "full", 1)],
    ids=["lightning2", "sdpa"],
)
def test_blocks_of_a_kind_are_one_graph_and_compute_what_is_written(
    name: str, checkpointing: Checkpointing, graphs: int
) -> None:
    """TransNormerLLM has two kinds, as its first block alone has positions."""
    counter = CompileCounterWithBackend("aot_eager")
    _alike(name, checkpointing, backend=counter)
    assert counter.frame_count == graphs


@pytest.mark.parametrize(
    ("warmup", "compiled", "untimed"),
    [(1, True, 1), (2, True, 2), (3, True, 3), (1, False, 1), (2, False, 2)],
)
def test_so_many_steps_come_before_the_timed_ones(
    warmup: int, compiled: bool, untimed: int, untuned: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiled second step tells how long one takes, and is a sample where it is no warm-up."""
    untuned("eager")
    steps: list[float] = []
    sample = training._Steps._sample

    def kept(measured: training._Steps) -> float:
        steps.append(sample(measured))
        return steps[-1]

    monkeypatch.setattr(training._Steps, "_sample", kept)
    monkeypatch.setattr(training._Steps, "attention_share", lambda *_: None)
    row = measure_train_step(dataclasses.replace(STEP, warmup=warmup, compiled=compiled, steps=3), device=CPU)
    assert row.status == "ok", row.reason
    assert row.samples_ms == tuple(steps[untimed - 1 :])  # the first step is none of these
    assert len(row.samples_ms) == 3


def test_a_second_step_that_is_over_the_limit_is_no_sample(
    untuned: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    untuned("eager")

    def late(measured: training._Steps) -> float:
        measured._deadline = 0.0
        return 40_000.0

    monkeypatch.setattr(training._Steps, "_sample", late)
    row = measure_train_step(dataclasses.replace(STEP, warmup=1), device=CPU)
    assert (row.status, row.samples_ms) == ("timeout", None)
    assert row.reason == "a step takes 40.00 s: none fits what the steps before it left of the limit of 60 s"


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize(
    ("name", "module", "launcher", "once", "compiled"),
    [
        ("lightning1", lightning1, "left_product", 4, True),
        ("lightning1", lightning1, "left_product", 4, False),
        ("lightning2", lightning2, "run_scans", 2, False),
    ],
    ids=["lightning1 compiled", "lightning1", "lightning2"],
)
def test_selective_checkpointing_does_not_attend_again(
    name: str, module: Any, launcher: str, once: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`once`: launches of a forward and its backward; full checkpointing has one more."""
    launched, launch = [], getattr(module, launcher)

    def counted(*arguments: Any, **options: Any) -> None:
        launched.append(launcher)
        launch(*arguments, **options)

    monkeypatch.setattr(module, launcher, counted)
    for checkpointing, times in (("selective", once), ("full", once + 1)):
        if compiled and checkpointing == "full":
            continue  # the partitioner may keep more than it is asked to
        model = _model(name, checkpointing, layers=1)  # type: ignore[arg-type]
        if compiled:
            compile_blocks(model, backend="aot_eager")
        launched.clear()
        _step(model)
        assert len(launched) == times


def test_a_compiled_step_is_recorded_as_such(untuned: Callable[[Any], None]) -> None:
    untuned("aot_eager")
    row = measure_train_step(STEP, device=CPU)
    assert (row.status, row.compiled, row.case_id.endswith(".compiled")) == ("ok", True, True), row.reason
    written = measure_train_step(dataclasses.replace(STEP, compiled=False), device=CPU)
    assert (written.status, written.compiled) == ("ok", False)
    assert row.case_id != written.case_id
    assert row.first_loss == pytest.approx(written.first_loss, rel=1e-5)
    assert row.attention_share is not None
    assert row.first_step_ms is not None
    assert row.median_ms is not None
    assert row.first_step_ms > row.median_ms


def test_each_number_of_sequences_is_compiled_for(
    untuned: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many tries, until the memory is enough: torch would refuse to compile one function for so many shapes."""
    untuned("aot_eager")
    forward = LanguageModel.forward

    def bounded(self: LanguageModel, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = forward(self, tokens, targets)
        if len(tokens) > 1:
            raise torch.OutOfMemoryError("no room for more")
        return loss

    monkeypatch.setattr(LanguageModel, "forward", bounded)
    with torch._dynamo.config.patch(recompile_limit=1):
        row = measure_train_step(dataclasses.replace(STEP, steps=1), device=CPU)
    assert (row.status, row.batch, row.micro_batches) == ("ok", 1, 2), row.reason


def test_a_block_that_cannot_be_compiled_is_an_error_in_words(
    untuned: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    untuned("eager")

    def breaking(self: Any, q: torch.Tensor, *rest: Any, **_: Any) -> torch.Tensor:
        torch._dynamo.graph_break()
        return q

    monkeypatch.setattr(attention.Attention, "__call__", breaking)
    row = measure_train_step(STEP, device=CPU)
    assert row.status == "error"
    assert row.reason is not None
    assert row.reason.startswith("torch.compile fails on a block (Unsupported: ")
    assert row.reason.endswith("; --no-compile runs it as it is written")


def test_other_errors_are_not_the_compilers() -> None:
    with pytest.raises(torch.OutOfMemoryError), compiling.telling():
        raise torch.OutOfMemoryError("full")
    with pytest.raises(CompilationError), compiling.telling():
        raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, ValueError("no"), None)


@pytest.mark.parametrize(
    ("compile_limit_s", "status"), [(120.0, "ok"), (50.0, "timeout")], ids=["within", "beyond"]
)
def test_compiling_has_an_allowance_beside_the_limit(
    compile_limit_s: float, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step takes 100 s, the others next to nothing, and the limit is 5 s."""
    passed = [0.0]

    def first_is_slow(model: LanguageModel) -> None:
        forward = model.forward

        def slow(*tokens: torch.Tensor) -> torch.Tensor:
            passed[0] = 100.0
            return forward(*tokens)

        monkeypatch.setattr(model, "forward", slow)

    monkeypatch.setattr(training, "compile_blocks", first_is_slow)
    monkeypatch.setattr(training, "now_s", lambda: passed[0])
    request = dataclasses.replace(STEP, limit_s=5.0, compile_limit_s=compile_limit_s)
    row = measure_train_step(request, device=CPU)
    assert row.status == status
    assert (row.reason or "").startswith("compiling and the first step took") == (status == "timeout")


@pytest.mark.parametrize(
    ("given", "limit_s", "compile_limit_s"),
    [(180.0, 60.0, 120.0), (100.0, 60.0, 40.0), (20.0, 20.0, 0.0)],
)
def test_a_budget_cuts_what_is_for_compiling_first(
    given: float, limit_s: float, compile_limit_s: float
) -> None:
    request = dataclasses.replace(STEP, limit_s=60.0, compile_limit_s=120.0)
    cut = running._within(request, given)
    assert (cut.limit_s, cut.compile_limit_s) == (limit_s, compile_limit_s)
    assert cut.case_id == request.case_id
    plain = running._within(dataclasses.replace(request, compiled=False), given)
    assert plain.limit_s == limit_s


@pytest.mark.usefixtures("group_of_one")
def test_sharded_blocks_are_compiled_without_their_hooks(untuned: Callable[[Any], None]) -> None:
    """FSDP2 over a group of one, which takes the way of many."""
    untuned("aot_eager")
    sharded = measure_train_step(STEP, device=CPU, ranks=Ranks(rank=0, count=2, device=CPU))
    alone = measure_train_step(dataclasses.replace(STEP, compiled=False), device=CPU)
    assert sharded.status == "ok", sharded.reason
    assert sharded.last_loss == pytest.approx(alone.last_loss, rel=1e-4)
