"""What the public calls refuse, and in which words; and how the package may be imported."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import attnbench.kernels
from attnbench.kernels import lightning_attention_1, lightning_attention_2, lightning_decode

B, H, N, D, E = 2, 3, 5, 16, 32


def sequence_arguments(device: str) -> dict[str, Any]:
    return {
        "q": torch.zeros(B, H, N, D, device=device),
        "k": torch.zeros(B, H, N, D, device=device),
        "v": torch.zeros(B, H, N, E, device=device),
        "slopes": torch.zeros(H, device=device),
    }


def decode_arguments(device: str) -> dict[str, Any]:
    return {
        "q": torch.zeros(B, H, D, device=device),
        "k": torch.zeros(B, H, D, device=device),
        "v": torch.zeros(B, H, E, device=device),
        "state": torch.zeros(B, H, D, E, device=device),
        "slopes": torch.zeros(H, device=device),
    }


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def cases() -> list[Any]:
    def case(id_: str, error: type[Exception], message: str, **changes: Any) -> Any:
        return pytest.param(changes, error, message, id=id_)

    z = torch.zeros
    return [
        case("q-list", TypeError, "q must be a torch.Tensor, got list", q=[1.0]),
        case("q-rank", ValueError, "q must have the shape [B, H, N, D], got [2, 3, 16]", q=z(B, H, D)),
        case(
            "q-int",
            TypeError,
            "q must be float32, float16 or bfloat16, got torch.int64",
            q=z(B, H, N, D).long(),
        ),
        case(
            "k-shape",
            ValueError,
            "k must have the shape of q, [2, 3, 5, 16], got [2, 3, 5, 32]",
            k=z(B, H, N, E),
        ),
        case(
            "v-shape",
            ValueError,
            "v must have the shape [B, H, N, E] with B, H, N = 2, 3, 5 as in q, got [2, 3, 6, 32]",
            v=z(B, H, 6, E),
        ),
        case(
            "empty",
            ValueError,
            "q must have N of at least 1, got the shape [2, 3, 0, 16]",
            q=z(B, H, 0, D),
            k=z(B, H, 0, D),
            v=z(B, H, 0, E),
        ),
        case(
            "D",
            ValueError,
            "the last dim of q must be a multiple of 16 from 16 to 256, got 24",
            q=z(B, H, N, 24),
            k=z(B, H, N, 24),
        ),
        case(
            "E",
            ValueError,
            "the last dim of v must be a multiple of 16 from 16 to 256, got 272",
            v=z(B, H, N, 272),
        ),
        case(
            "k-dtype",
            TypeError,
            "k must have the dtype of q, torch.float32, got torch.float16",
            k=z(B, H, N, D).half(),
        ),
        case(
            "v-stride",
            ValueError,
            "the last dim of v must have stride 1, got the strides [480, 160, 1, 5]",
            v=z(B, H, E, N).transpose(2, 3),
        ),
        case(
            "k-device",
            ValueError,
            "k must be on q's device, {device}; it is on meta",
            k=z(B, H, N, D, device="meta"),
        ),
        case("slopes-float", TypeError, "slopes must be a torch.Tensor, got float", slopes=0.5),
        case("slopes-dtype", TypeError, "slopes must be float32, got torch.float64", slopes=z(H).double()),
        case("slopes-shape", ValueError, "slopes must have the shape [H] = [3], got [2]", slopes=z(2)),
        case(
            "slopes-negative",
            ValueError,
            "slopes must be finite and not negative, got slopes[1] = -0.5",
            slopes=torch.tensor([0.0, -0.5, 1.0]),
        ),
        case(
            "slopes-nan",
            ValueError,
            "slopes must be finite and not negative, got slopes[2] = nan",
            slopes=torch.tensor([0.0, 0.5, float("nan")]),
        ),
        case(
            "slopes-inf",
            ValueError,
            "slopes must be finite and not negative, got slopes[0] = inf",
            slopes=torch.tensor([float("inf"), 0.0, 0.0]),
        ),
    ]


def located(x: Any, device: str) -> Any:
    return x.to(device) if isinstance(x, torch.Tensor) and x.device.type != "meta" else x


def says(message: str, device: str) -> str:
    where = str(torch.zeros(0, device=device).device)
    return "^" + re.escape(message.replace("{device}", where)) + "$"


@pytest.mark.parametrize("function", [lightning_attention_1, lightning_attention_2])
@pytest.mark.parametrize(("changes", "error", "message"), cases())
def test_sequences(
    function: Callable[..., Any], changes: dict[str, Any], error: type[Exception], message: str, device: str
) -> None:
    arguments = sequence_arguments(device) | {name: located(x, device) for name, x in changes.items()}
    with pytest.raises(error, match=says(message, device)):
        function(**arguments)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ("state", TypeError, "initial_state must be a torch.Tensor, got str"),
        (
            torch.zeros(B, H, E, D),
            ValueError,
            "initial_state must have the shape [B, H, D, E] = [2, 3, 16, 32], got [2, 3, 32, 16]",
        ),
        (torch.zeros(B, H, D, E).half(), TypeError, "initial_state must be float32, got torch.float16"),
        (
            torch.zeros(B, H, D, E, device="meta"),
            ValueError,
            "initial_state must be on q's device, {device}; it is on meta",
        ),
    ],
    ids=["type", "shape", "dtype", "device"],
)
def test_initial_state(state: Any, error: type[Exception], message: str, device: str) -> None:
    with pytest.raises(error, match=says(message, device)):
        lightning_attention_2(**sequence_arguments(device), initial_state=located(state, device))


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("q", torch.zeros(B, H, N, D), ValueError, "q must have the shape [B, H, D], got [2, 3, 5, 16]"),
        (
            "v",
            torch.zeros(B, 4, E),
            ValueError,
            "v must have the shape [B, H, E] with B, H = 2, 3 as in q, got [2, 4, 32]",
        ),
        ("state", torch.zeros(B, H, D, E).double(), TypeError, "state must be float32, got torch.float64"),
        (
            "state",
            torch.zeros(B, H, E, D).transpose(2, 3),
            ValueError,
            "the last dim of state must have stride 1, got the strides [1536, 512, 1, 16]",
        ),
        (
            "state",
            torch.zeros(1, H, D, E).expand(B, H, D, E),
            ValueError,
            "state must not be an expanded tensor, got the strides [0, 512, 32, 1]",
        ),
    ],
    ids=["q-rank", "v-shape", "state-dtype", "state-stride", "state-expanded"],
)
def test_decode(name: str, value: torch.Tensor, error: type[Exception], message: str, device: str) -> None:
    arguments = decode_arguments(device)
    arguments[name] = located(value, device)
    with pytest.raises(error, match=says(message, device)):
        lightning_decode(**arguments)


@pytest.mark.parametrize("function", [lightning_attention_1, lightning_attention_2, lightning_decode])
def test_scale(function: Callable[..., Any], device: str) -> None:
    arguments = decode_arguments(device) if function is lightning_decode else sequence_arguments(device)
    with pytest.raises(ValueError, match=r"^scale must be finite, got inf$"):
        function(**arguments, scale=float("inf"))
    function(**arguments, scale=1)


@pytest.mark.parametrize("function", [lightning_attention_1, lightning_attention_2, lightning_decode])
def test_cpu_tensors_are_refused_without_the_interpreter(
    function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnbench.kernels._validate.interpreting", lambda: False)
    arguments = decode_arguments("cpu") if function is lightning_decode else sequence_arguments("cpu")
    with pytest.raises(ValueError, match=rf"^{function.__name__} needs CUDA tensors; q is on cpu$"):
        function(**arguments)


def test_public_names() -> None:
    assert attnbench.kernels.__all__ == ["lightning_attention_1", "lightning_attention_2", "lightning_decode"]


def test_the_package_refuses_another_name() -> None:
    parent = Path(attnbench.kernels.__file__).parents[1]
    code = f"import sys; sys.path.insert(0, {str(parent)!r}); import kernels"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "ImportError: 'kernels' is a link to a folder of this checkout" in result.stderr
