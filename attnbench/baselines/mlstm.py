"""Tiled Flash Linear Attention (TFLA) by its authors' package, mlstm-kernels: decayed linear attention as an mLSTM.

The mLSTM with sigmoid gates computes h_t = scale * sum_{s<=t} (prod_{r=s+1..t} sigmoid(f_r)) sigmoid(i_s)
(q_t . k_s) v_s over a normaliser that can be left away. With sigmoid(i) = 1 and sigmoid(f) = exp(-slope) that
is decayed linear attention. The mLSTM with exponential gates always divides, so it is not this function.
"""

from __future__ import annotations

from typing import Any

import torch
from mlstm_kernels.torch.chunkwise.triton_xl_chunk_siging.fwbw import _mlstm_siging_chunkwise_fwbw_generator
from torch import Tensor

from attnbench.baselines.contract import need_causal

# The function behind mlstm_siging_chunkwise__xl_chunk, which fixes the scale to D^-0.5. The dtype is that
# function's default and means something under autocast only.
_CHUNKWISE: Any = _mlstm_siging_chunkwise_fwbw_generator(autocast_kernel_dtype=torch.float32, normalize=False)

_CHUNK = 128  # the package's default, "found to be the fastest in benchmarks"
_OPEN = 32.0  # 1 - sigmoid(32) is 1e-14: exactly 1 in fp32, and 32 is exact in every dtype


def tfla(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool) -> Tensor:
    """o_t = scale * sum_{s<=t} exp(-slope (t - s)) (q_t . k_s) v_s.

    q, k: [B, H, N, D], v: [B, H, N, E] on CUDA, contiguous (else the package copies them), D and E multiples of
    16, N a multiple of 128 or one of 16, 32 and 64; slopes: fp32 [H], 0 to 80, or None for no decay; returns
    [B, H, N, E] in the input dtype. The gates that an mLSTM has for each token, i and f: [B, H, N], are filled in
    every call, and the backward computes their gradients too: both belong to this way of asking.

    Raises ValueError for causal=False, NotImplementedError for another length.
    Source: Beck et al., "Tiled Flash Linear Attention" (arXiv 2503.14376), mLSTMsig; mlstm_kernels 2.0.6,
    torch/chunkwise/triton_xl_chunk_siging.
    """
    need_causal(causal)
    B, H, N, _ = q.shape
    if N % _CHUNK and N not in (16, 32, 64):
        raise NotImplementedError(f"seq_len {N}: mlstm-kernels takes 16, 32, 64 and multiples of {_CHUNK}")
    i = q.new_full((B, H, N), _OPEN)
    # sigmoid(f) = exp(-slope), solved without the cancellation of 1 - exp(-slope). A slope of 0 gives f = inf.
    f = i if slopes is None else -slopes.expm1().log()[:, None].expand(B, H, N)
    o: Tensor = _CHUNKWISE.apply(q, k, v, i, f, None, None, scale)[0]
    return o
