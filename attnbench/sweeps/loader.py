"""From a sweep (a preset's name or a TOML file) to cases.

    description = "what the sweep answers"
    mechanism = ["lightning2", "flash2"]
    workload = ["fwd", "bwd"]
    dtype = ["bf16"]
    seq_len = ["1k", "2k", 4096]    # k = 1024, M = 1024 * 1024
    heads = [16]
    head_dim = [128]
    batch = [4]                     # or tokens = "1M": constant tokens, batch = tokens / seq_len
    value_dim = [128]               # optional; default: the same as head_dim
    kv_heads = [4]                  # optional; default: the same as heads
    window = ["1k"]                 # optional, for mechanisms with a window; default: theirs
    causal = [true, false]          # optional; default: true

    [protocol]                      # optional: fields of attnbench.case.Protocol
    limit_s = 10

    [[also]]                        # optional: one more grid; keys that it does not name are those above
    workload = ["decode"]
    batch = [64]

    [cpu]                           # optional: what replaces the keys above on a machine without a GPU
    seq_len = [256, 512]
    also = []
    [cpu.protocol]
    limit_s = 3

An irregular list of shapes replaces batch, tokens, heads, seq_len and head_dim:

    shapes = [[4, 16, "8k", 128], [1, 32, "32k", 64]]    # [batch, heads, seq_len, head_dim]

A single value may stand for a list of one. Three layers are read by the same rules, a later one replacing
keys of an earlier one: the file, its [cpu] table, the command line. The same quantity given in another way is
replaced too: batch by tokens, the axes by shapes, and the reverse. Where a further
grid names mechanisms, workloads or dtypes, the command line only takes some of them away.
"""

from __future__ import annotations

from pathlib import Path

from attnbench.case import Protocol
from attnbench.sweeps.axes import NAME_KEYS, Axes
from attnbench.sweeps.files import open_sweep
from attnbench.sweeps.layers import Overrides, asked_of, consistent, feasible, flags, grid_over, replaced
from attnbench.sweeps.sweep import Device, Sweep
from attnbench.sweeps.tables import CpuTable, Document, Table, further_grids, layer


def load(name_or_path: str | Path, *, device: Device, overrides: Overrides | None = None) -> Sweep:
    """The sweep of that name, or of the TOML file at that path (it ends with .toml or has a separator).

    The [cpu] table is checked on every device. Raises UserError, with the place and the reason in one
    sentence, for whatever keeps the sweep from yielding cases.
    """
    file = open_sweep(name_or_path)
    keys, protocol = layer(Document, file.parse(), places=file.places)
    description, cpu = keys.pop("description", ""), keys.pop("cpu", {})
    further = further_grids(keys.pop("also", []), places=file.places)
    cpu_keys, cpu_protocol = layer(CpuTable, cpu, places=file.places, table=("cpu",))
    cpu_further = further_grids(cpu_keys.pop("also", None), places=file.places, table=("cpu",))
    if device == "cpu":
        keys, protocol = replaced(keys, cpu_keys), protocol | cpu_protocol
        further = further if cpu_further is None else cpu_further
    asked = {key: value for key, value in vars(overrides or Overrides()).items() if value is not None}
    own_keys, own_protocol = layer(Table, asked, places=flags)
    first = asked_of(keys, own_keys, label=file.label)
    also = [
        asked_of(
            grid_over(keys, more, own_keys),
            {key: value for key, value in own_keys.items() if key not in NAME_KEYS or key not in more},
            label=file.label,
        )
        for more in further or ()
    ]
    sweep = Sweep(
        name=file.stem,
        description=description,
        device=device,
        axes=Axes(**first),
        protocol=Protocol(**protocol | own_protocol),
        also=tuple(Axes(**grid) for grid in also if all(grid[key] for key in NAME_KEYS)),
    )
    for axes in (sweep.axes, *sweep.also):
        consistent(axes, label=file.label)
    feasible(sweep.protocol, device=device, label=file.label)
    return sweep
