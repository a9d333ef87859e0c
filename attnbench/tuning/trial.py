"""One job of a tuning process: a check of a configuration against the fp64 oracle, or samples of its time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from attnbench.case import Cache
from attnbench.kernels._configs import Config, Row, ScanConfig, Tiles
from attnbench.kernels._host import limits
from attnbench.kernels._plan import plan, remembered_tokens
from attnbench.kernels._scan import REACH, Hints, Scan, run_scans
from attnbench.kernels.lightning1 import left_product
from attnbench.measure.accuracy import poison, relative_error
from attnbench.measure.clock import Clock, open_clock
from attnbench.semantics import TOLERANCES, TORCH_DTYPES, decay_linear_oracle, geometric_slopes
from attnbench.tuning.candidates import Point

# One head forgets within a short segment, one does not, and the third lies between.
_SLOPES = (0.5, 2.0**-4, 2.0**-8)
# All heads forget, so that segments need no first pass: a kernel without states between them.
_STEEP_SLOPES = (0.5, 0.5, 0.5)
_SEED = 0

Values = tuple[float, ...] | None  # slopes by head; None: no decay


class Work(StrEnum):
    """What a check has computed."""

    FORWARD = "forward"
    REVERSED = "reversed"
    GRADIENTS = "gradients"  # dq, dk and dv, in one launch where the kernel can


@dataclass(frozen=True, kw_only=True)
class Check:
    """A configuration against the oracle in one dtype, width and kind of work, in one and in two segments.

    thorough: also with heads that all forget, without decay, and with a state handed from one call to the next.
    """

    kernel: str
    config: Config
    dtype: str
    key_dim: int
    value_dim: int
    work: Work
    thorough: bool


@dataclass(frozen=True, kw_only=True)
class Timing:
    """`count` samples of one forward with a cold L2; 0: its first call alone, which leaves it compiled for other
    processes. segments: None: as planned."""

    kernel: str
    config: Config
    point: Point
    count: int
    segments: int | None = None


Job = Check | Timing


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a job. reason: why the configuration is refused, or None; wrong: its numbers were."""

    reason: str | None = None
    wrong: bool = False
    samples_ms: tuple[float, ...] = ()


# (scans, *, slopes: Values, config, segments) -> None; segments None: as planned.
Launch = Callable[..., None]


def screening(kernel: str, config: Config, *, points: list[Point]) -> list[Check]:
    """What a configuration must pass before it is timed: the forward at the widths and dtypes of its points."""
    return [
        Check(
            kernel=kernel,
            config=config,
            dtype=dtype,
            key_dim=dim,
            value_dim=dim,
            work=Work.FORWARD,
            thorough=False,
        )
        for dtype, dim in dict.fromkeys((p.dtype, p.head_dim) for p in points)
    ]


def admission(row: Row, config: Config) -> list[Check]:
    """What a configuration must pass before it enters a table: everything that its row serves, by example.

    All dtypes of the element size; a key dim as wide as the row's and one that is no power of two; values of
    another width than the keys; both directions of time, and for Lightning-2 all gradients in one launch, a kernel of
    its own, for which values must be as wide as keys.
    """
    whole, odd = row.key_dim, row.key_dim - 16
    dtypes = [name for name, dtype in TORCH_DTYPES.items() if dtype.itemsize == row.element_size]
    square = [(whole, whole), (odd, odd)]
    cases = [
        (dims, work)
        for dims in (*square, (odd, 2 * whole if whole < 256 else 48))
        for work in (Work.FORWARD, Work.REVERSED)
    ]
    if row.kernel == "lightning2":
        cases += [(dims, Work.GRADIENTS) for dims in square]
    return [
        Check(
            kernel=row.kernel,
            config=config,
            dtype=dtype,
            key_dim=key_dim,
            value_dim=value_dim,
            work=work,
            thorough=key_dim == value_dim == whole,
        )
        for dtype in dtypes
        for (key_dim, value_dim), work in cases
    ]


def perform(job: Job) -> Answer:
    """Do a job on the first GPU; compilers' and launchers' errors become reasons.

    Raises RuntimeError when the device does not answer any more: the process is of no use then.
    """
    device = torch.device("cuda", 0)
    torch.set_num_threads(1)  # there are as many processes as cores
    try:
        if isinstance(job, Timing):
            return Answer(samples_ms=_samples(job, device=device))
        fault = check(job, device=device)
        return Answer(reason=fault, wrong=fault is not None)
    except Exception as error:  # what compilers, launchers and drivers raise has no class in common
        torch.cuda.synchronize(device)
        text = str(error).strip().splitlines()
        return Answer(reason=f"{type(error).__name__}: {text[0][:200] if text else ''}")


def check(job: Check, *, device: torch.device, launch: Launch | None = None) -> str | None:
    """How a configuration's numbers are wrong, in words, or None: into poisoned outputs, at odd lengths.

    launch: what is checked, in the place of the job's kernel.
    """
    launch = functools.partial(launch or LAUNCHES[job.kernel], config=job.config)
    block = job.config.block_c if isinstance(job.config, ScanConfig) else job.config.block_m
    segmented = isinstance(job.config, ScanConfig)
    lengths = (8 * block + 5, block - 3)
    for length in lengths:
        given = _normal(job, length=length, device=device)
        for slopes in (_SLOPES, _STEEP_SLOPES, None) if job.thorough else (_SLOPES,):
            truths = _truths(given, slopes=slopes, work=job.work)
            for segments in (1, 2) if segmented else (1,):
                scans = _scans(given, work=job.work)
                launch(list(scans.values()), slopes=slopes, segments=segments)
                fault = _first_fault(scans, truths, dtype=job.dtype)
                if fault:
                    where = f"{_named(job)}, {length} tokens, segments {segments}{_DECAYS[slopes]}"
                    return f"{where}: {fault}"
    if job.thorough and segmented and job.work is Work.FORWARD:
        given = _normal(job, length=lengths[0], device=device)
        scans = _handed_on(launch, given)
        fault = _first_fault(scans, _truths(given, slopes=_SLOPES, work=job.work), dtype=job.dtype)
        if fault:
            return f"{_named(job)}, {lengths[0]} tokens, a state handed on: {fault}"
    return None


_DECAYS: dict[Values, str] = {_SLOPES: "", _STEEP_SLOPES: ", steep decay", None: ", no decay"}

Given = tuple[Tensor, Tensor, Tensor, Tensor]  # q, k, v, do


def _handed_on(launch: Launch, given: Given) -> dict[str, Scan]:
    """The forward in two calls, the second from the state after the first, into the output of one scan."""
    scan = _scans(given, work=Work.FORWARD)["o"]
    cut = scan.q.shape[2] // 2 + 1
    shape = (*scan.q.shape[:2], scan.q.shape[3], scan.v.shape[3])
    state = torch.full(shape, float("nan"), device=scan.q.device)
    first, second = slice(None, cut), slice(cut, None)
    for part, initial, final in ((first, None, state), (second, state, None)):
        q, k, v, out = (x[:, :, part] for x in (scan.q, scan.k, scan.v, scan.out))
        piece = dataclasses.replace(scan, q=q, k=k, v=v, out=out, initial=initial, final=final)
        launch([piece], slopes=_SLOPES, segments=2)
    return {"o": scan}


def _normal(job: Check, *, length: int, device: torch.device) -> Given:
    generator = torch.Generator(device=device).manual_seed(_SEED + length)

    def normal(width: int) -> Tensor:
        return torch.randn(
            (1, len(_SLOPES), length, width),
            dtype=TORCH_DTYPES[job.dtype],
            device=device,
            generator=generator,
        )

    return normal(job.key_dim), normal(job.key_dim), normal(job.value_dim), normal(job.value_dim)


def _scans(given: Given, *, work: Work) -> dict[str, Scan]:
    """The scans that do the work, by the names of their outputs; those are NaN, and so is the memory that the states
    between two segments will be given."""
    q, k, v, do = given

    def scan(q: Tensor, k: Tensor, v: Tensor, *, reverse: bool) -> Scan:
        out = torch.full_like(v, float("nan"))
        return Scan(q=q, k=k, v=v, out=out, scale_out=1.0, scale_state=1.0, reverse=reverse)

    if work is Work.GRADIENTS:
        scans = {
            "dq": scan(do, v, k, reverse=False),
            "dk": scan(v, do, q, reverse=True),
            "dv": scan(k, q, do, reverse=True),
        }
    else:
        scans = {"o": scan(q, k, v, reverse=work is Work.REVERSED)}
    state = torch.Size((len(scans), *q.shape[:2], v.shape[3], q.shape[3]))
    poison(device=q.device, like=[(state, torch.float32)])
    return scans


def _truths(given: Given, *, slopes: Values, work: Work) -> dict[str, Tensor]:
    """fp64 [H, N, width] of one sequence, by the names of `_scans`."""
    q, k, v, do = (x[0] for x in given)
    decay = None if slopes is None else torch.tensor(slopes, device=q.device)
    oracle = functools.partial(decay_linear_oracle, slopes=decay, scale=1.0, causal=True)
    if work is Work.GRADIENTS:
        found = oracle(q, k, v, do)
        return {name: getattr(found, name) for name in ("dq", "dk", "dv")}
    if work is Work.REVERSED:
        return {"o": oracle(q.flip(1), k.flip(1), v.flip(1), None).o.flip(1)}
    return {"o": oracle(q, k, v, None).o}


def _first_fault(scans: Mapping[str, Scan], truths: Mapping[str, Tensor], *, dtype: str) -> str | None:
    """What is wrong with the first wrong output, by name where there are several."""
    for name, scan in scans.items():
        fault = _fault(scan.out, truths[name], dtype=dtype)
        if fault:
            return f"{name} {fault}" if len(scans) > 1 else fault
    return None


def _fault(out: Tensor, truth: Tensor, *, dtype: str) -> str | None:
    """By head, so that no head's size hides another's error; NaN is within no limit."""
    errors = [relative_error(x, t, fallback=t) for x, t in zip(out[0], truth, strict=True)]
    limit = TOLERANCES[dtype]
    bad = [error for error in errors if not error <= limit]
    return f"off by {max(bad, default=0.0):.1e}, {dtype} allows {limit:g}" if bad else None


def _named(job: Check) -> str:
    return f"{job.dtype} {job.work} D{job.key_dim} E{job.value_dim}"


@functools.lru_cache(maxsize=64)
def _on_device(slopes: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(slopes, device=device)


@functools.lru_cache(maxsize=64)
def _remembered(slopes: tuple[float, ...], dtype: torch.dtype) -> tuple[float, ...]:
    """Tokens by head; kept, as the host must not be slower than the launch that it times."""
    return tuple(remembered_tokens(slope, reach=REACH[dtype]) for slope in slopes)


def _run_scans(scans: Sequence[Scan], *, slopes: Values, config: ScanConfig, segments: int | None) -> None:
    """In one launch, if they are of one kind; with the slopes' values known, as eager calls have them."""
    q, v = scans[0].q, scans[0].v
    limit = limits(q.device)
    batch, heads, seq_len, key_dim = q.shape
    chosen = plan(
        scans=len(scans),
        batch=batch,
        heads=heads,
        seq_len=seq_len,
        key_dim=key_dim,
        value_dim=v.shape[3],
        element_size=q.element_size(),
        remembered=_remembered(slopes or (0.0,) * heads, q.dtype),
        multiprocessors=limit.multiprocessors,
        shared_memory=limit.shared_memory,
        architecture=limit.architecture,
        config=config,
    )
    if segments is not None:
        chosen = dataclasses.replace(chosen, segments=segments)
    tensor = None if slopes is None else _on_device(slopes, q.device)
    run_scans(scans, slopes=tensor, hints=Hints(values=slopes), plan=chosen)


def _left_products(scans: Sequence[Scan], *, slopes: Values, config: Tiles, segments: int | None) -> None:
    """One after the other; Lightning-1 has neither states nor segments."""
    for scan in scans:
        left_product(
            scan.q,
            scan.k,
            scan.v,
            out=scan.out,
            slopes=None if slopes is None else _on_device(slopes, scan.q.device),
            scale=1.0,
            reverse=scan.reverse,
            config=config,
        )


LAUNCHES: dict[str, Launch] = {"lightning2": _run_scans, "lightning1": _left_products}


@functools.lru_cache(maxsize=4)  # as many tensors as a small card holds; the points of a row take turns
def _scan_at(point: Point, device: torch.device) -> Scan:
    shape = (point.batch, point.heads, point.seq_len, point.head_dim)
    q, k, v = (torch.randn(shape, dtype=TORCH_DTYPES[point.dtype], device=device) for _ in range(3))
    return Scan(q=q, k=k, v=v, out=torch.empty_like(v), scale_out=1.0, scale_state=1.0)


@functools.cache
def _clock(device: torch.device) -> Clock:
    return open_clock(device=device, cache=Cache.COLD)


def _samples(job: Timing, *, device: torch.device) -> tuple[float, ...]:
    """Milliseconds by the project's clock; the first call, which loads the kernel, is not among them."""
    call = functools.partial(
        LAUNCHES[job.kernel],
        [_scan_at(job.point, device)],
        slopes=tuple(geometric_slopes(job.point.heads).tolist()),
        config=job.config,
        segments=job.segments,
    )
    call()
    if not job.count:
        torch.cuda.synchronize(device)
        _scan_at.cache_clear()  # its tensors are large, and others check at the same time
        torch.cuda.empty_cache()
        return ()
    return tuple(_clock(device).batch(call, job.count))
