"""Loss curves of a small model by each attention, from the same weights and over the same tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attnbench.measure.clock import now_s
from attnbench.measure.environment import device_name
from attnbench.measure.sampling import CaseTimeoutError
from attnbench.models.device import clean
from attnbench.models.model import build
from attnbench.models.records import Loss
from attnbench.models.shapes import family_of
from attnbench.models.tasks import batches
from attnbench.models.training import WEIGHTS, Precision, autocast


@dataclass(frozen=True, kw_only=True)
class LossRequest:
    """A training run: `steps` of AdamW over `batch` sequences of `seq_len` tokens each, at a constant rate."""

    size: str
    attention: str
    task: str
    steps: int
    seq_len: int
    batch: int
    precision: Precision
    learning_rate: float = 1e-3
    limit_s: float = 600.0
    seed: int = 0

    @property
    def case_id(self) -> str:
        return (
            f"losses.{self.size}.{self.attention}.{self.task}.N{self.seq_len}.B{self.batch}.S{self.steps}."
            f"{self.precision}.seed{self.seed}"
        )


def measure_losses(request: LossRequest, *, device: torch.device) -> list[Loss]:
    """The loss of every step, before its update.

    Raises UnsupportedError where the attention is not available, CaseTimeoutError when the steps do not fit the
    limit, FloatingPointError when the loss is not finite.
    """
    deadline = now_s() + request.limit_s
    with clean(device):
        model = build(
            request.size,
            attention=request.attention,
            device=device,
            dtype=WEIGHTS[request.precision],
            seed=request.seed,
        )
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=request.learning_rate, betas=(0.9, 0.95), fused=device.type == "cuda"
        )
        data = batches(request.task, seed=request.seed, batch=request.batch, length=request.seq_len + 1)
        values = []
        for step in range(request.steps):
            if now_s() > deadline:
                raise CaseTimeoutError(
                    f"{step} of {request.steps} steps were done within {request.limit_s:.0f} s"
                )
            tokens = next(data).to(device)
            optimizer.zero_grad(set_to_none=True)
            with autocast(request.precision, device=device):
                loss = model(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
            optimizer.step()
            values.append(loss.detach())
        found = torch.stack(values).double().cpu()
    if not bool(found.isfinite().all()):
        raise FloatingPointError(
            f"the loss is not finite from step {int(found.isfinite().int().argmin())} on"
        )
    per_step = request.batch * request.seq_len
    return [
        Loss(
            case_id=request.case_id,
            model=family_of(request.attention),
            size=request.size,
            attention=request.attention,
            task=request.task,
            seed=request.seed,
            step=step,
            tokens=step * per_step,
            loss=value,
            seq_len=request.seq_len,
            batch=request.batch,
            learning_rate=request.learning_rate,
            precision=request.precision,
            parameters=sum(p.numel() for p in model.parameters()),
            device=device_name(device),
            provider=model.attention.provider.label,
        )
        for step, value in enumerate(found.tolist())
    ]
