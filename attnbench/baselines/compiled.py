"""torch.compile as adapters use it: for many shapes, and for a backward that is timed again and again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo import config as dynamo
from torch._functorch import config as functorch

# A sweep has more shapes than torch's 8 for one function.
_SHAPES = 1024


@functools.cache
def compiled(function: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
    """A function as one graph, compiled when it is first called, for each shape anew or, if `dynamic`, for all.

    Past the limit of shapes it raises instead of running uncompiled.
    """
    dynamo.recompile_limit = _SHAPES
    dynamo.accumulated_recompile_limit = _SHAPES
    functorch.donated_buffer = False  # a timed backward runs again and again on one forward
    made: Callable[..., Any] = torch.compile(function, dynamic=dynamic, fullgraph=True)
    return made
