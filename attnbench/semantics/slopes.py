"""Laws that give each head its rate of decay."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def geometric_slopes(heads: int) -> Tensor:
    """Decay slopes by head, fp32 [heads], all > 0: s_h = 2^(-8(h+1)/H), as in ALiBi and the TransNormerLLM code.

    A number of heads that is no power of two takes the series of the power below it, then every second value
    of the next power's series. Source: ALiBi (arXiv 2108.12409), and the code of Lightning Attention.
    """
    power = 2 ** int(math.log2(heads))

    def series(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (h + 1) / n) for h in range(n)]

    return torch.tensor(series(power) + series(2 * power)[0::2][: heads - power], dtype=torch.float32)


def retention_slopes(heads: int) -> Tensor:
    """Decay slopes by head, fp32 [heads], all > 0: s_h = -log(1 - 2^(-5-h)).

    Source: "Retentive Network" (arXiv 2307.08621), section 3.1: gamma = 1 - 2^(-5 - arange(heads)).
    """
    h = torch.arange(heads, dtype=torch.float64)
    return -torch.log1p(-(2.0 ** (-5.0 - h))).float()
