"""Lightning attention in Triton: two forms for sequences and one for a single token.

The recurrence is o_t = scale * q_t S_t with S_t = exp(-slope) S_{t-1} + k_t^T v_t, one slope per head.
"""

if __name__ != "attnbench.kernels":
    raise ImportError(
        f"'{__name__}' is a link to a folder of this checkout, not a package: import attnbench.kernels, or "
        "take the checkout's root off sys.path if another package named 'kernels' was meant"
    )

from attnbench.kernels.decode import lightning_decode
from attnbench.kernels.lightning1 import lightning_attention_1
from attnbench.kernels.lightning2 import lightning_attention_2

__all__ = ["lightning_attention_1", "lightning_attention_2", "lightning_decode"]
