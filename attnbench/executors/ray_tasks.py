"""Hand a sweep's batches to Ray Core: a task with one GPU and a process of its own for each. Ray finds the GPUs."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from attnbench.case import Case, Protocol
from attnbench.errors import UserError
from attnbench.executors.batch import Batch, Event, measure_batch
from attnbench.executors.batches import Batches, Flight
from attnbench.executors.run_folder import RunFolder
from attnbench.executors.supervised import Row
from attnbench.measure.clock import now_s
from attnbench.measure.pretending import pretended
from attnbench.words import count_text

INSTALL = "pip install 'attnbench[ray]'"

_MODEL = "accelerator_type:"  # how Ray names the resource that tells a node's GPU model
_STORE_BYTES = 100 * 2**20  # of a cluster of our own: rows are all that travels
_POLL_S = 1.0
_CONNECT_S = 10.0  # to answer a knock


@contextlib.contextmanager
def cluster(*, address: str | None, kind: str, gpus: int | None) -> Iterator[Any]:
    """Ray's module, connected to the cluster at an address, or to one of our own on this machine.

    Raises UserError where Ray is not installed, no cluster answers, or it has fewer GPUs than asked.
    """
    try:
        import ray
    except ImportError:
        raise UserError(f"the executor ray needs Ray, which is not installed: {INSTALL}") from None
    own = not ray.is_initialized()
    if own:
        _connect(ray, address=address)
    try:
        _check(ray, address=address, kind=kind, gpus=gpus)
        with contextlib.redirect_stdout(
            sys.stderr
        ):  # where Ray tells of nodes that died; stdout is for results
            yield ray
    finally:
        if own:
            ray.shutdown()


@dataclass
class RayExecutor:
    """Measures the cases that a run folder lacks in tasks of a cluster, and writes a shard for each of their rows."""

    ray: Any
    folder: RunFolder
    kind: str
    protocol: Protocol
    gpus: int | None = None  # at most so many at a time
    notes: list[str] = field(default_factory=list)

    def run(
        self, cases: Iterable[Case], *, started: Callable[[Case], None], finished: Callable[[Row], None]
    ) -> None:
        """Measure every case that has no shard yet; `started` and `finished` hear of each.

        Raises UserError where task after task cannot measure.
        """
        begun = now_s()
        batches = Batches(
            cases,
            folder=self.folder,
            kind=self.kind,
            protocol=self.protocol,
            started=started,
            finished=finished,
        )
        if not batches.left:
            return
        crew = _Crew(self, batches)
        try:
            while crew.submit():
                crew.listen()
        finally:
            crew.dismiss()
            batches.book.spent(wall_s=now_s() - begun, worker_s=0.0, phases_s={})
            self.folder = batches.book.folder
            self.notes += batches.notes


@dataclass
class _Task:
    flight: Flight
    model: str | None  # as Ray calls it
    node: str | None = None  # Ray's id of the node


class _Crew:
    """The tasks that are under way."""

    def __init__(self, executor: RayExecutor, batches: Batches) -> None:
        self._executor, self._batches = executor, batches
        self._ray = executor.ray
        self._tasks: dict[Any, _Task] = {}  # by the generator of their events
        self._devices: dict[str | None, str] = {}  # what workers call the models that Ray names
        self._lossy: set[str] = set()  # nodes that have lost a case
        self._remote = executor.ray.remote(max_calls=1, max_retries=0)(_perform)

    def submit(self) -> bool:
        """Hand batches to GPUs that are free of ours. False: nothing is left to wait for."""
        there = _gpus(self._ray, kind=self._executor.kind)
        total = min(sum(there.values()), self._executor.gpus or sum(there.values()))
        for model, count in there.items():
            while len(self._tasks) < total and self._busy(model) < count:
                flight = self._batches.take(device=self._devices.get(model), gpus=total)
                if flight is None:
                    break
                options = self._options(model, several=len(there) > 1)
                self._tasks[self._remote.options(**options).remote(flight.batch)] = _Task(flight, model)
        return bool(self._tasks)

    def listen(self) -> None:
        """Take note of what the tasks tell."""
        ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=_POLL_S)
        for events in ready:
            task = self._tasks[events]
            try:
                event = self._ray.get(next(events))
            except StopIteration:
                del self._tasks[events]
                if task.flight.left:
                    self._batches.lost(task.flight, reason="its task ended early")
            except self._ray.exceptions.RayError as error:
                del self._tasks[events]
                self._lossy |= set() if task.node is None else {task.node}
                self._batches.lost(task.flight, reason=_short(error))
            else:
                self._tell(task, event)

    def dismiss(self) -> None:
        """End whatever is still under way."""
        for events in self._tasks:
            with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
                self._ray.cancel(events, force=True)

    def _tell(self, task: _Task, event: Event) -> None:
        if "at" in event:
            task.node = event["at"]
            return
        self._batches.tell(task.flight, event)
        if task.flight.slot.device is not None:
            self._devices[task.model] = task.flight.slot.device

    def _busy(self, model: str | None) -> int:
        return sum(task.model == model for task in self._tasks.values())

    def _options(self, model: str | None, *, several: bool) -> dict[str, Any]:
        options = _share(self._ray, kind=self._executor.kind)
        if several and model is not None:
            options["accelerator_type"] = model
        elsewhere = [node for node in _nodes(self._ray, self._executor.kind) if node not in self._lossy]
        if self._lossy and elsewhere:  # a node that lost a case gets others when nobody else is free
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            busy = Counter(task.node for task in self._tasks.values())
            calmest = min(elsewhere, key=lambda node: busy[node])
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(calmest, soft=True)
        return options


def _perform(batch: Batch) -> Iterator[Event]:
    """A task's life, on its node."""
    import ray

    yield {"at": ray.get_runtime_context().get_node_id()}
    yield from measure_batch(batch)


# ------------------------------------------------------------------------------------------------------------


def _connect(ray: Any, *, address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        node = pretended()
        fake = {} if node is None else {"num_gpus": len(node.models)}
        ray.init(address="local", include_dashboard=False, object_store_memory=_STORE_BYTES, **fake, **quiet)
        return
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({_short(error)}); start one with: ray start --head"
        ) from None


def _knock(address: str) -> None:
    """Ray itself asks for many minutes before it gives an address up.

    Raises OSError where nothing listens, ValueError for what is no HOST:PORT.
    """
    if address == "auto":  # Ray looks for a cluster on this machine, and soon says so when there is none
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("expected HOST:PORT")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
        pass


def _check(ray: Any, *, address: str | None, kind: str, gpus: int | None) -> None:
    there = sum(_gpus(ray, kind=kind).values())
    where = f"the Ray cluster at {address}" if address else "the Ray cluster of this machine"
    what = "GPU" if _takes_gpus(kind) else "node"
    if not there:
        raise UserError(f"{where} has no GPU to measure on; try --device cpu")
    if gpus is not None and gpus > there:
        raise UserError(f"{where} has {count_text(there, what)}, and --gpus asks for {gpus}")


def _alive(ray: Any) -> list[Mapping[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _nodes(ray: Any, kind: str) -> list[str]:
    """Ray's ids of the nodes that can measure."""
    return [node["NodeID"] for node in _alive(ray) if _count(node, kind)]


def _gpus(ray: Any, *, kind: str) -> dict[str | None, int]:
    """How many GPUs of each model the cluster has now; of a sweep for processors, how many nodes."""
    found: Counter[str | None] = Counter()
    for node in _alive(ray):
        models = [name.removeprefix(_MODEL) for name in node["Resources"] if name.startswith(_MODEL)]
        found[models[0] if models and _takes_gpus(kind) else None] += _count(node, kind)
    return {model: count for model, count in found.items() if count}


def _count(node: Mapping[str, Any], kind: str) -> int:
    return int(node["Resources"].get("GPU", 0)) if _takes_gpus(kind) else 1


def _takes_gpus(kind: str) -> bool:
    """Does a task ask for a GPU? On processors too, where GPUs are pretended."""
    return kind == "cuda" or pretended() is not None


def _share(ray: Any, *, kind: str) -> dict[str, Any]:
    """What a task asks of its node: one GPU, or all the cores of one."""
    if _takes_gpus(kind):
        return {"num_gpus": 1, "num_cpus": 0}
    return {"num_cpus": min(node["Resources"].get("CPU", 1) for node in _alive(ray))}


def _short(error: BaseException) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    sentence = line.partition(". ")[0].rstrip(".")
    return sentence if len(sentence) <= 160 else f"{sentence[:159]}…"
