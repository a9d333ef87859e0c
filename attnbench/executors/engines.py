"""The executors behind one interface: which one a sweep is handed to, and whether it is there at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol as Interface

from attnbench.case import Case, Protocol
from attnbench.errors import UserError, unknown
from attnbench.executors import idle, ray_tasks, slurm
from attnbench.executors.local import LocalExecutor
from attnbench.executors.lock import Descriptors
from attnbench.executors.run_folder import RunFolder
from attnbench.executors.supervised import Row, SupervisedWorker
from attnbench.executors.worker_process import HERE, Interpreter
from attnbench.measure.gpus import visible_gpus
from attnbench.measure.pretending import VISIBLE
from attnbench.words import count_text

NAMES = ("local", "ray", "slurm")


class Executor(Interface):
    """Measures the cases that a run folder lacks, and writes a shard for each.

    folder: with its record as it is now. notes: what a user should know of the run, in sentences.
    """

    folder: RunFolder
    notes: list[str]

    def run(
        self, cases: Iterable[Case], *, started: Callable[[Case], None], finished: Callable[[Row], None]
    ) -> None:
        """Measure every case that has no shard yet; `started` and `finished` hear of each, in this thread.

        Raises UserError where nothing can be measured.
        """


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An executor as a user asks for it. gpus: to use at a time; None: all (of Slurm: one)."""

    name: str = "local"
    gpus: int | None = None
    ray_address: str | None = None
    slurm_partition: str | None = None
    slurm_options: dict[str, str] = field(default_factory=dict)

    @property
    def elsewhere(self) -> bool:
        """Is it measured on machines that this one need not resemble?"""
        return self.name == "slurm" or (self.name == "ray" and self.ray_address is not None)

    def as_dict(self) -> dict[str, object]:
        """For the run's record."""
        return {key: value for key, value in vars(self).items() if value not in (None, {})}


LOCAL = Engine()


def engine(
    *,
    name: str,
    gpus: int | None = None,
    ray_address: str | None = None,
    slurm_partition: str | None = None,
    slurm_options: Sequence[str] = (),
) -> Engine:
    """The engine of a command line's words.

    Raises UserError for an unknown name, an option of another executor, or an option of sbatch without a value.
    """
    if name not in NAMES:
        raise unknown("executor", name, NAMES)
    given: dict[str, dict[str, object]] = {
        "ray": {"--ray-address": ray_address},
        "slurm": {"--slurm-partition": slurm_partition, "--slurm-option": slurm_options or None},
    }
    for owner, options in given.items():
        for option, value in options.items():
            if value is not None and name != owner:
                raise UserError(f"{option} is for --executor {owner}, and this is --executor {name}")
    pairs = {}
    for text in slurm_options:
        key, equals, value = text.lstrip("-").partition("=")
        if not key or not equals or not value:
            raise UserError(f"--slurm-option is '{text}'; expected NAME=VALUE, as in constraint=h200")
        pairs[key] = value
    return Engine(
        name=name,
        gpus=gpus,
        ray_address=ray_address or (os.environ.get("RAY_ADDRESS") or None if name == "ray" else None),
        slurm_partition=slurm_partition,
        slurm_options=pairs,
    )


@contextlib.contextmanager
def ready(asked: Engine, *, kind: str, protocol: Protocol) -> Iterator[Callable[[RunFolder], Executor]]:
    """What makes the executor of a run folder, while the engine is there (of this machine, with its GPUs to ourselves).

    Raises UserError where it is not installed or not reachable, has fewer GPUs than asked, or is busy.
    """
    if asked.name == "ray":
        with ray_tasks.cluster(address=asked.ray_address, kind=kind, gpus=asked.gpus) as ray:
            yield lambda folder: ray_tasks.RayExecutor(
                ray=ray, folder=folder, kind=kind, protocol=protocol, gpus=asked.gpus
            )
    elif asked.name == "slurm":
        module = slurm.submitit_module()
        yield lambda folder: slurm.SlurmExecutor(
            submitit=module,
            folder=folder,
            kind=kind,
            protocol=protocol,
            gpus=asked.gpus or 1,
            partition=asked.slurm_partition,
            options=asked.slurm_options,
        )
    else:
        used = interpreters(kind, gpus=asked.gpus)
        with idle.lock(kind) as lock:
            yield lambda folder: LocalExecutor(
                folder=folder,
                workers=_workers(
                    folder.path,
                    used,
                    kind=kind,
                    protocol=protocol,
                    run_id=folder.run_id,
                    lock=lock,
                ),
            )


def interpreters(kind: str, *, gpus: int | None) -> tuple[Interpreter, ...]:
    """One for each GPU of this machine that is used; gpus: of those that are visible, None: all.

    Raises UserError where so many are not visible.
    """
    seen = visible_gpus(kind)
    if gpus is not None and gpus > max(len(seen), 1 if kind == "cpu" else 0):
        raise UserError(f"this machine has {count_text(len(seen), 'GPU')}, and --gpus asks for {gpus}")
    used = seen if gpus is None else seen[:gpus]
    if len(used) < 2:
        return (HERE,)
    return tuple(Interpreter(variables={VISIBLE: gpu.name}) for gpu in used)


def _workers(
    path: Path,
    interpreters: Sequence[Interpreter],
    *,
    kind: str,
    protocol: Protocol,
    run_id: str,
    lock: Descriptors,
) -> tuple[SupervisedWorker, ...]:
    several = len(interpreters) > 1
    return tuple(
        SupervisedWorker(
            device=kind,
            protocol=protocol,
            log=path / (f"worker-{number}.log" if several else "worker.log"),
            run_id=run_id,
            lock=lock,
            interpreter=interpreter,
            replaceable=several,
        )
        for number, interpreter in enumerate(interpreters)
    )
