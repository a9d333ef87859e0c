"""All mechanisms by name: attnbench's own table, what installed packages register, and files of one's own.

Nothing named here is imported before it is used. `attnbench.providers` has the contract that every row keeps.
Third parties join through the entry-point group `attnbench.mechanisms`: each entry point names a `Mechanism`. A name
such as `flash2@torch` is that mechanism by the provider of that distribution alone.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from functools import cache

from attnbench.case import Case
from attnbench.catalogue import BUILT_IN
from attnbench.errors import UserError, nearest, unknown
from attnbench.mechanism_files import remembered
from attnbench.providers import Cost, Decode, Layout, Mechanism, Provider, load_target

__all__ = [
    "ENTRY_POINT_GROUP",
    "Cost",
    "Decode",
    "Layout",
    "Mechanism",
    "Provider",
    "find",
    "load_target",
    "mechanisms",
    "support",
]

ENTRY_POINT_GROUP = "attnbench.mechanisms"


@cache
def mechanisms() -> Mapping[str, Mechanism]:
    """All mechanisms by name: attnbench's own, then what installed packages register, then what files hold.

    Raises UserError when an entry point or a file cannot be loaded, yields no Mechanism, or takes a name in use.
    """
    table = {mechanism.name: mechanism for mechanism in BUILT_IN}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            mechanism = entry.load()
        except Exception as error:  # another package's code, whatever it raises: say whose it is
            raise UserError(
                f"entry point '{entry.name}' of {entry.value} cannot be loaded: {error}"
            ) from error
        if not isinstance(mechanism, Mechanism):
            raise UserError(f"entry point '{entry.name}' of {entry.value} is no attnbench Mechanism")
        if mechanism.name in table:
            raise UserError(
                f"entry point '{entry.name}' registers '{mechanism.name}', which is already registered"
            )
        table[mechanism.name] = mechanism
    for mechanism in remembered():
        if mechanism.name in table:
            raise UserError(f"a file registers '{mechanism.name}', which is already registered: rename it")
        table[mechanism.name] = mechanism
    return table


def find(name: str) -> Mechanism:
    """The mechanism of that name; of `name@distribution` with the providers of that distribution alone.

    Raises UserError with the nearest name when there is none.
    """
    table = mechanisms()
    plain, at, distribution = name.partition("@")
    if plain not in table:
        raise unknown("mechanism", plain, table)
    mechanism = table[plain]
    if not at:
        return mechanism
    chosen = tuple(p for p in mechanism.providers if p.distribution == distribution)
    if not chosen:
        known = dict.fromkeys(p.distribution for p in mechanism.providers)
        raise UserError(f"{plain} has no provider '{distribution}'; {nearest(distribution, known)}")
    return dataclasses.replace(mechanism, name=name, providers=chosen)


def support(case: Case, *, device: str) -> Provider | str:
    """The provider that takes a case on `device` ("cuda" or "cpu"), or the reason why none does."""
    mechanism = find(case.mechanism)
    provider = mechanism.provider_for(device)
    if isinstance(provider, str):
        return provider
    if case.workload not in mechanism.workloads_of(provider):
        return f"workload {case.workload} is not defined for {case.mechanism}"
    reason = provider.why_not(case)
    return reason if reason is not None else provider.serving(case.workload)
