"""From the curves of a workload to pages: which panels one file holds, and what these share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from attnbench.case import Status
from attnbench.curves import Curve, Floats, Group, groups
from attnbench.plots.axes import log_ticks, padded
from attnbench.plots.looks import in_order
from attnbench.plots.quantities import Quantity, has_values
from attnbench.plots.signs import SIGNS
from attnbench.plots.text import SMALL, text_width

MAX_PANELS = 12  # panels of one file


@dataclass(frozen=True, kw_only=True)
class Page:
    """One file's worth of panels and all that is shared between them. Sizes in inches."""

    quantity: Quantity
    workload: str
    protocol: str
    providers: Mapping[str, str]
    curves: tuple[Curve, ...]
    groups: tuple[Group, ...]
    columns: int
    width: float  # of a panel
    height: float  # of a panel, without its strip
    x: tuple[float, float]
    y: tuple[float, float]

    @cached_property
    def varying(self) -> set[str]:
        """The parts of the groups that differ between panels."""
        parts = [group.parts() for group in self.groups]
        names = {name for part in parts for name in part}
        return {name for name in names if len({part.get(name) for part in parts}) > 1}

    @cached_property
    def drawn(self) -> tuple[str, ...]:
        """The mechanisms that have a line in some panel, in the order of the legend."""
        return in_order(c.mechanism for c in self.curves if has_values(c, self.quantity))

    @cached_property
    def absent(self) -> dict[str, str]:
        """The mechanisms unsupported at every length of every panel, with the reason given most often."""
        statuses: dict[str, Counter[str]] = {}
        for c in self.curves:
            known = statuses.setdefault(c.mechanism, Counter())
            known.update(gap.reason if gap.status == Status.UNSUPPORTED else "" for gap in c.gaps)
            known[""] += len(c)
        return {
            name: min(reasons, key=lambda reason: (-reasons[reason], reason))
            for name in in_order(statuses)
            if (reasons := statuses[name]) and not reasons[""]
        }

    @cached_property
    def strip(self) -> tuple[str, ...]:
        """The mechanisms that have a row in the strip of cases without a value."""
        return in_order(c.mechanism for c in self.curves if c.gaps and c.mechanism not in self.absent)

    @cached_property
    def signs(self) -> tuple[str, ...]:
        """The statuses that occur in the strip, in the order of their legend."""
        present = {gap.status for c in self.curves if c.mechanism in self.strip for gap in c.gaps}
        return tuple(sorted(present, key=lambda status: ([*SIGNS, status].index(status), status)))


def pages_of(
    found: Sequence[Curve], *, quantity: Quantity, providers: Mapping[str, str], protocol: str
) -> Iterable[Page]:
    """The pages of one quantity of one workload; none when there is no value."""
    valued = [c for c in found if has_values(c, quantity)]
    if not valued:
        return
    y = _y_range(_shown(valued, quantity), base=quantity.base)
    lengths = [int(n) for c in found for n in c.seq_len] + [gap.seq_len for c in found for gap in c.gaps]
    x = padded(min(lengths), max(lengths), least=4.0, pad=0.045)
    all_groups = groups(found)
    pages = math.ceil(len(all_groups) / MAX_PANELS)
    size = math.ceil(len(all_groups) / pages)
    for first in range(0, len(all_groups), size):
        here = all_groups[first : first + size]
        columns = _columns(here)
        width, height = {1: (0.0, 2.55), 2: (2.75, 2.0), 3: (2.3, 1.7)}.get(columns, (2.15, 1.6))
        yield Page(
            quantity=quantity,
            workload=found[0].workload,
            protocol=protocol if quantity.ends is not None else "",  # of what is timed
            providers=providers,
            curves=tuple(c for c in found if c.group in here),
            groups=here,
            columns=columns,
            width=width,
            height=height,
            x=x,
            y=y,
        )


def _columns(here: Sequence[Group]) -> int:
    """Panels in a row: one row for each value of what changes slowest, where that makes a full grid."""
    count = len(here)
    if count > 4:
        first, second = here[0].parts(), here[1].parts()
        fastest = next((name for name in first if first[name] != second.get(name)), "")
        different = len({group.parts().get(fastest) for group in here})
        if 2 <= different <= 4 and count % different == 0:
            return different
    return {1: 1, 2: 2, 3: 3, 4: 2}.get(count, 3 if count <= 9 else 4)


def _shown(valued: Sequence[Curve], quantity: Quantity) -> Floats:
    """All that is drawn: values, and the ends of their intervals."""
    ends = [] if quantity.ends is None else [each for c in valued for each in quantity.ends(c)]
    every = np.concatenate([*(quantity.value(c) for c in valued), *ends])
    return every[every > 0]  # False for NaN


def _y_range(values: Floats, *, base: int) -> tuple[float, float]:
    return padded(float(values.min()), float(values.max()), least=10.0 if base == 10 else 8.0, pad=0.06)


def y_tick_places(page: Page) -> list[float]:
    """Where the vertical axis of every panel has its labels."""
    return log_ticks(*page.y, base=page.quantity.base, most=max(4, round(page.height / 0.3)))


def tick_width(page: Page) -> float:
    """The width of the widest of these labels, in inches."""
    return max(text_width(page.quantity.tick(tick), size=SMALL) for tick in y_tick_places(page))
