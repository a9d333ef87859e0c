"""One decoding step against the recurrence in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnbench.kernels import lightning_decode

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("law", ["none", "geometric", "large"])
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 1, 32, 48), (1, 1, 1, 96, 80), (1, 2, 1, 16, 256)],
    ids=["D32-E48", "D96-E80", "D16-E256"],
)
def test_steps(
    shape: tuple[int, int, int, int, int],
    law: str,
    dtype: torch.dtype,
    error: Any,
    inputs: Any,
    make_state: Any,
    make_slopes: Any,
) -> None:
    heads = shape[1]
    state = make_state(shape).detach()
    reference = state.double()
    slopes = make_slopes(law, heads)
    decay = 1.0 if slopes is None else torch.exp(-slopes.double())[:, None, None]
    for seed in range(3):
        q, k, v = (x.detach()[:, :, 0] for x in inputs(shape, dtype=dtype, seed=seed))
        out = lightning_decode(q, k, v, state, slopes, scale=0.5)
        assert out.dtype == dtype
        reference = decay * reference + k.double()[..., :, None] * v.double()[..., None, :]
        assert error(out, 0.5 * (q.double()[..., None, :] @ reference)[..., 0, :]) <= TOLERANCE[dtype]
        assert error(state, reference) <= 1e-6


def test_strides(error: Any, inputs: Any, make_state: Any) -> None:
    q, k, v = (x.detach()[:, :, 0] for x in inputs((2, 3, 1, 32, 32)))
    fused = torch.stack([q, k, v], dim=1).transpose(0, 2).contiguous().transpose(0, 2)
    state = make_state((2, 3, 1, 32, 64)).detach()
    expected_state = state[..., 16:48].contiguous()
    expected = lightning_decode(q, k, v, expected_state)
    untouched = state[..., :16].clone()
    out = lightning_decode(fused[:, 0], fused[:, 1], fused[:, 2], state[..., 16:48])
    assert error(out, expected) <= 1e-6
    assert error(state[..., 16:48], expected_state) <= 1e-6
    assert torch.equal(state[..., :16], untouched)


def test_the_update_is_known_to_autograd(inputs: Any, make_state: Any) -> None:
    q, k, v = (x.detach()[:, :, 0] for x in inputs((1, 1, 1, 16, 16)))
    state = make_state((1, 1, 1, 16, 16)).detach()
    version = state._version
    lightning_decode(q, k, v, state)
    assert state._version > version


def test_gradients_are_refused(inputs: Any, make_state: Any) -> None:
    q, k, v = (x[:, :, 0] for x in inputs((1, 1, 1, 16, 16)))
    state = make_state((1, 1, 1, 16, 16)).detach()
    with pytest.raises(ValueError, match="lightning_decode has no gradient, but q requires one"):
        lightning_decode(q, k, v, state)
    with torch.no_grad():
        lightning_decode(q, k, v, state)
