"""What a figure or table of the papers is, read from the data that comes with the package.

One TOML file a figure (`data/`): source, hardware, what is stated and what is not, errata, how it is drawn, which
runs measure it, and its claims; its numbers in a CSV beside it. A number that is not published is nowhere.
"""

from __future__ import annotations

import importlib.resources
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources.abc import Traversable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from attnbench.errors import unknown
from attnbench.paper.claims import Claim

Quantity = Literal["time", "rate", "memory", "loss"]
Unit = Literal["ms", "tokens/s", "MiB", "nats"]

# What one of a unit is in the units that lines have: milliseconds, tokens per second, bytes, nats.
UNITS: Mapping[Unit, float] = {"ms": 1.0, "tokens/s": 1.0, "MiB": 2.0**20, "nats": 1.0}


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Where = Mapping[
    str, str | tuple[str, ...]
]  # columns of records, and the value or values that a row must have


class Panel(_Data):
    """One pair of axes. `limit`: where the paper's own axis ends, in `unit`."""

    key: str
    title: str
    quantity: Quantity
    unit: Unit
    workload: str = ""  # of the rows of a sweep
    where: Where = {}  # of model records
    limit: float | None = None


class Series(_Data):
    """One line. Sweeps: the first of `mechanism` that was measured. Model records: the rows that fit `where`."""

    key: str
    label: str
    mechanism: tuple[str, ...] = ()
    where: Where = {}
    style: str = ""  # the mechanism whose colour and mark it has; default: its own

    @property
    def look(self) -> str:
        """The mechanism in whose style it is drawn."""
        return self.style or (self.mechanism[0] if self.mechanism else self.key)


class Borrowed(_Data):
    """Published points of another figure that stand beside this one's."""

    figure: str
    edition: str


class Correction(_Data):
    """A published line, less `per_token` bytes for each token of a sequence that are not what it claims to measure."""

    panel: str
    edition: str
    per_token: float
    why: str


class Shape(_Data):
    """What a figure's sweep holds fixed; one of `batch` and `tokens` (batch times length) is given."""

    heads: int
    head_dim: int
    dtype: str
    batch: int | None = None
    tokens: int | None = None


class Figure(_Data):
    """One figure or table of the papers."""

    name: str
    title: str
    paper: str
    aliases: tuple[str, ...] = ()
    form: Literal["curves", "dots"]
    level: Literal["operator", "model"]
    hardware: str
    published: str  # what of it is published, in words
    stated: tuple[str, ...]
    not_stated: tuple[str, ...]
    assumed: str = ""
    errata: tuple[str, ...]
    derived: tuple[str, ...] = ()  # our own arithmetic on what is published
    difference: str  # what other hardware does to it
    x: Literal["seq_len", "context", "step"]
    axes: tuple[
        Literal["linear", "log", "log-linear"], ...
    ]  # a picture of each; log-linear: x alone is logarithmic
    at: float | None = None  # of `dots`: the x at which they are drawn
    span: tuple[float, float] | None = None  # measured points beyond the table are left out
    data: str = ""  # CSV of its published numbers
    sweeps: tuple[str, ...] = ()  # presets that measure it; where several hold a case, the first one counts
    records: Literal["", "train-step", "inference", "losses"] = ""
    # Commands of attnbench that make the records: those that its claims need, and, where it is measured by its name,
    # the points between and beyond.
    record_by: tuple[str, ...] = ()
    record_more: tuple[str, ...] = ()
    shape: Shape | None = None
    where: Where = {}
    borrows: tuple[Borrowed, ...] = ()
    correction: tuple[Correction, ...] = ()
    panel: tuple[Panel, ...]
    series: tuple[Series, ...]
    claim: tuple[Annotated[Claim, Field(discriminator="check")], ...] = ()

    def panel_of(self, key: str) -> Panel:
        """The panel of that key. Raises KeyError when there is none."""
        return {panel.key: panel for panel in self.panel}[key]

    @property
    def sources(self) -> tuple[str, ...]:
        """The runs that measure it, by name."""
        return (*self.sweeps, *([self.records] if self.records else []))


# In the order in which the papers have them; what the papers only say in words comes last.
ORDER = (
    "table1", "table2", "fig3", "readme-speed", "readme-memory", "tnl-fig4", "tnl-fig5",
    "constant-speed", "decode", "model-decode",
)  # fmt: skip


@cache
def figures() -> Mapping[str, Figure]:
    """All figures by name, in order."""
    found = {}
    for name in ORDER:
        document = tomllib.loads((folder() / f"{name}.toml").read_text(encoding="utf-8"))
        found[name] = Figure.model_validate(document)
    return found


def find(name: str) -> Figure:
    """The figure of that name or alias. Raises UserError, with the nearest name, for one that is not known."""
    known = figures()
    names = {alias: each.name for each in known.values() for alias in (each.name, *each.aliases)}
    if name.lower() not in names:
        raise unknown("figure", name, [*names, "all", "list"])
    return known[names[name.lower()]]


def folder() -> Traversable:
    """Where the published numbers lie."""
    return importlib.resources.files("attnbench.paper") / "data"
