"""The worker process for models: takes requests one by one, as `attnbench.measure.worker` takes cases.

Messages in: {"kind": "train-step", "inference" or "losses", "request": {...}}.
Messages out: {"rows": [{...}], "reason": null or why there are none, "status": null or the status of that,
"lost_device": bool}.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from attnbench.case import Launch, Status
from attnbench.measure.runner import failure
from attnbench.measure.worker import device_is_lost, serve
from attnbench.models.attention import UnsupportedError
from attnbench.models.inference import InferenceRequest, measure_inference
from attnbench.models.losses import LossRequest, measure_losses
from attnbench.models.records import Record
from attnbench.models.training import TrainRequest, measure_train_step


def answer(message: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Measure what is asked for."""
    reason, status = None, None
    rows: Sequence[Record]
    try:
        rows = _measured(message["kind"], message["request"], device=device)
    except UnsupportedError as error:
        rows, reason, status = [], str(error), Status.UNSUPPORTED
    except Exception as error:  # of losses alone: the others have a status for it
        rows, (status, reason) = [], failure(error)
    broken = reason is not None or any(getattr(row, "status", None) == Status.ERROR for row in rows)
    return {
        "rows": [dataclasses.asdict(row) for row in rows],
        "reason": reason,
        "status": status,
        "lost_device": broken and device_is_lost(device),
    }


def _measured(kind: str, request: dict[str, Any], *, device: torch.device) -> Sequence[Record]:
    if kind == "train-step":
        return [measure_train_step(TrainRequest(**request), device=device)]
    if kind == "inference":
        launch = Launch(request.pop("launch"))
        return [measure_inference(InferenceRequest(**request, launch=launch), device=device)]
    return measure_losses(LossRequest(**request), device=device)


if __name__ == "__main__":
    serve(answer)
