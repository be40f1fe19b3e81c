"""How much of a network's time its scans take, both passes, measured inside a run of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.efficientvmamba import EfficientVMamba, with_scan
from models.layers import Scan2d


def scan_share(
    model: EfficientVMamba,
    x: Tensor,
    training_step: Callable[[nn.Module, Tensor], Callable[[], None]] | None = None,
    repeats: int = 5,
) -> float:
    """Part of a forward pass, or of a training step if one is given, that is spent inside the
    scans; median of `repeats`."""
    twin = with_scan(model, model.scan_spec)
    watch = _Stopwatch(x.device)
    for parent in twin.modules():
        for name, child in parent.named_children():
            if isinstance(child, Scan2d):
                parent._modules[name] = _TimedScan(child, watch)
    is_training = training_step is not None
    step = training_step(twin, x) if training_step else (lambda: twin(x))
    shares = []
    with torch.set_grad_enabled(is_training):
        step()
        for _ in range(repeats):
            watch.seconds, start = 0.0, time.perf_counter()
            step()
            wait(x.device)
            shares.append(watch.seconds / (time.perf_counter() - start))
    return float(np.median(shares))


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Stopwatch:
    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._device = device

    def start(self) -> None:
        wait(self._device)
        self.seconds -= time.perf_counter()

    def stop(self) -> None:
        wait(self._device)
        self.seconds += time.perf_counter()


class _TimedScan(Scan2d):
    """Stands in for a scan and times it, both passes. No hooks: they change how a block runs."""

    def __init__(self, scan: Scan2d, watch: _Stopwatch) -> None:
        super().__init__(scan.spec, scan.backend)
        self._watch = watch

    def forward(self, x: Tensor, *parameters: Tensor) -> Tensor:
        x = _Mark.apply(x, self._watch.stop)
        self._watch.start()
        y = super().forward(x, *parameters)
        self._watch.stop()
        return _Mark.apply(y, self._watch.start)


class _Mark(torch.autograd.Function):
    """Nothing in the forward pass; calls when the backward pass comes by."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Callable[[], None]) -> Tensor:
        ctx.call = call
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.call()
        return grads[0], None
