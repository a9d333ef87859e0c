"""A sweep as data: its grids, its protocol, and the cases in the order of measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from attnbench.case import Case, Protocol
from attnbench.errors import UserError
from attnbench.sweeps.axes import Axes, axes_dict, axes_of_dict, cases_of, plain

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A named grid of cases (and further ones in `also`) for one kind of device, and how each is measured."""

    name: str
    description: str
    device: Device
    axes: Axes
    protocol: Protocol
    also: tuple[Axes, ...] = ()

    def cases(self) -> tuple[Case, ...]:
        """The cases in the order of measurement, shape by shape, so that mechanisms are timed side by side.

        Outermost first: dtype, causal, head_dim, value_dim, heads, kv_heads, batch, seq_len (ascending), workload,
        mechanism, window. A list of shapes keeps its own order, with value_dim and kv_heads inside each shape. Of
        several windows a mechanism without one has one case. Further grids follow, without cases that were there
        before.
        """
        return tuple(dict.fromkeys(case for axes in (self.axes, *self.also) for case in cases_of(axes)))

    def as_dict(self) -> dict[str, Any]:
        """What was asked, in types that JSON has; axes that were not given are left out."""
        protocol = {key: plain(value) for key, value in self.protocol.as_dict().items()}
        return {
            "name": self.name,
            "description": self.description,
            "device": self.device,
            "axes": axes_dict(self.axes),
            **({"also": [axes_dict(axes) for axes in self.also]} if self.also else {}),
            "protocol": protocol,
        }


def sweep_of_record(record: Mapping[str, Any]) -> Sweep:
    """The sweep that `as_dict` gave the record of.

    Raises UserError for one that is damaged, or of another version.
    """
    try:
        return Sweep(
            name=record["name"],
            description=record["description"],
            device=record["device"],
            axes=axes_of_dict(record["axes"]),
            protocol=Protocol(**record["protocol"]),
            also=tuple(axes_of_dict(axes) for axes in record.get("also", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the record of the run names no sweep that this attnbench knows: {error}") from None
