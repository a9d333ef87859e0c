"""The commands `list` and `env`: which mechanisms there are here, and what the machine is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from attnbench.options import DeviceOption, Json, Mechanisms, make_console


def list_(mechanism: Mechanisms = None, json_: Json = False, device: DeviceOption = "auto") -> None:
    """Mechanisms: what each computes, who provides it here, or why nobody does and how to get it."""
    from attnbench import listing
    from attnbench.measure.gpus import device_kind
    from attnbench.sweeps.files import preset_names
    from attnbench.sweeps.values import parse_mechanisms

    kind = device_kind(device)
    asked = parse_mechanisms(mechanism, axis="--mechanism") if mechanism else None
    rows = listing.rows(kind, names=asked)
    if json_:
        print(json.dumps({"device": kind, "mechanisms": rows, "presets": preset_names()}, indent=1))
        return
    console = make_console()
    console.print(listing.table(rows, device=kind))
    console.print("gqa: grouped-query heads; full: not causal; name@distribution asks for one provider.")
    presets = ", ".join(preset_names())
    console.print(f"Presets: {presets}. Start with: attnbench sweep quick", highlight=False, soft_wrap=True)


def env(json_: Json = False, device: DeviceOption = "auto") -> None:
    """What a run on this machine would record: device, driver, versions."""
    from attnbench.measure.environment import collect, pick_device

    record = collect(pick_device(device))
    if json_:
        print(json.dumps(record, indent=1))
        return
    print("\n".join(_lines(record)))


def _lines(record: Mapping[str, Any], *, above: str = "") -> Iterator[str]:
    """One value a line, those of a part under the part's name; what is not known is a dash."""
    for name, value in record.items():
        full = f"{above}{name}"
        if isinstance(value, Mapping):
            yield from _lines(value, above=f"{full}.")
        else:
            yield f"{full:26} {'-' if value is None else value}"
