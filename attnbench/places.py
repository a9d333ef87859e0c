"""Where the rows of a run were measured: in one place, or on many machines and GPUs, each with its environment.

A run's record holds `environment` and `ceilings` of the place where it began. What was measured elsewhere has its own
in `places`, by a name such as `node-a/0` (node and GPU), and the first place is then among them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Record = Mapping[str, Any]

# Of an environment, what is one machine's or one sitting's and bears on no row.
_OWN = ("node", "gpu_index", "memory_bytes", "system")
_OWN_OF_GPU = ("uuid", "clocks_locked")
# Of its versions, those of what runs no case; our own code is named by its commit.
_NO_PROVIDERS = ("attnbench", "numpy", "pandas", "pyarrow")


def place_name(node: str | None, gpu_index: int | None) -> str:
    """`node-a/0`, or `node-a` of a processor; `?` for what nobody told."""
    return (node or "?") + ("" if gpu_index is None else f"/{gpu_index}")


def name_of(environment: Record) -> str:
    """The name of the place that an environment is of."""
    return place_name(environment.get("node"), environment.get("gpu_index"))


def with_place(
    record: Record, *, environment: Record, ceilings: Record | None, anew: bool = False
) -> dict[str, Any]:
    """What changes in a run's record when a worker tells where it is, and what it found there.

    What was found first at a place stays, as its rows were measured there. anew: no row was, so this is the first.
    """
    first, name, known = record.get("environment"), name_of(environment), by_place(record)
    before = {} if anew else known.get(name, {})
    own = {
        "environment": before.get("environment") or environment,
        "ceilings": before.get("ceilings") or ceilings,
    }
    if first is None or (not record.get("places") and name_of(first) == name):
        return own
    return {"places": {**known, name: own}}


def by_place(record: Record) -> dict[str, Record]:
    """`environment` and `ceilings` of every place of a run; empty where nothing is recorded."""
    if record.get("places"):
        return dict(record["places"])
    environment = record.get("environment")
    if not environment:
        return {}
    return {name_of(environment): {"environment": environment, "ceilings": record.get("ceilings")}}


def environment_at(record: Record, *, node: str | None, gpu_index: int | None) -> Record | None:
    """The environment in which a row was measured. A row that names no place is of the run's first one."""
    found = by_place(record).get(place_name(node, gpu_index))
    environment: Record | None = record.get("environment") if found is None else found["environment"]
    return environment


def measured_places(record: Record, rows: Iterable[Record]) -> frozenset[str]:
    """The places that rows of a run were measured in, by name. A row that names none is of the run's first one."""
    first, known = name_of(record.get("environment") or {}), by_place(record)
    names = (place_name(row["node"], row["gpu_index"]) for row in rows)
    return frozenset(name if name in known else first for name in names)


def differing(first: Record, now: Record) -> list[str]:
    """What cases run on that differs between two environments of one place: `torch 2.10.0, now 2.11.0`.

    What one of them does not tell is no difference, but a package that is not installed is one.
    """
    before, after = _bearing(first), _bearing(now)
    return [
        f"{name} {before[name]}, now {after[name]}"
        for name in before
        if name in after and before[name] != after[name]
    ]


def code_of(environment: Record) -> str:
    """The code that measured, in words: its commit, or its version where there is no checkout."""
    git = environment.get("git") or {}
    if not git.get("commit"):
        return f"attnbench {environment.get('attnbench')}"
    return f"commit {str(git['commit'])[:12]}{' with uncommitted changes' if git.get('dirty') else ''}"


def _bearing(environment: Record) -> dict[str, str]:
    told = {
        "device": environment.get("device"),
        "driver": (environment.get("gpu") or {}).get("driver"),
        "CUDA": environment.get("cuda"),
    }
    versions = environment.get("versions") or {}
    return {
        **{name: str(value) for name, value in told.items() if value is not None},
        **{name: value or "not installed" for name, value in versions.items() if name not in _NO_PROVIDERS},
    }


def ceilings_by_device(record: Record) -> Iterator[tuple[str | None, Record]]:
    """The device and the ceilings of every place that has measured them."""
    if not by_place(record) and record.get("ceilings"):
        yield None, record["ceilings"]
    for found in by_place(record).values():
        if found["ceilings"]:
            yield found["environment"].get("device"), found["ceilings"]


def shared(environment: Record) -> dict[str, Any]:
    """What an environment has in common with those of other machines of its kind."""
    gpu = environment.get("gpu") or {}
    return {
        **{name: value for name, value in environment.items() if name not in _OWN},
        "gpu": {name: value for name, value in gpu.items() if name not in _OWN_OF_GPU},
        "variables": {
            name: value
            for name, value in (environment.get("variables") or {}).items()
            if not name.startswith("CUDA_VISIBLE")
        },
    }


def highest_ceilings(measured: Iterable[Record]) -> dict[str, Any]:
    """Of ceilings measured several times on devices of one model the highest: one that was measured can be reached.

    copy_gbps: GB/s; matmul_tflops: TFLOP/s by dtype, where any is known. Empty where nothing was measured.
    """
    known = list(measured)
    if not known:
        return {}
    dtypes = dict.fromkeys(dtype for each in known for dtype in each["matmul_tflops"])
    return {
        "copy_gbps": max(each["copy_gbps"] for each in known),
        "matmul_tflops": {
            dtype: max(each["matmul_tflops"][dtype] for each in known if dtype in each["matmul_tflops"])
            for dtype in dtypes
        },
    }
