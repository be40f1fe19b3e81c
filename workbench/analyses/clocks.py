"""Clocks at the borders of blocks and scans, on a CPU or with the GPU's own events."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from models.layers import Scan2d


@dataclass
class Lap:
    """One pass with clocks: milliseconds between consecutive marks."""

    total: float
    spans: dict[tuple[str, str], float]  # ("block" | "scan", module path) -> ms
    before: dict[str, float]  # module path -> ms between the block before it (or the start) and it
    after_last: float


@dataclass
class Clocks:
    """Hooks that note the time at the borders of blocks and scans of one network."""

    device: torch.device
    handles: list[Any] = field(default_factory=list)
    marks: list[tuple[str, str, bool, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "CUDA events" if self.device.type == "cuda" else "time.perf_counter"

    def now(self) -> Any:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        return time.perf_counter()

    def ms(self, start: Any, end: Any) -> float:
        if self.device.type == "cuda":
            return start.elapsed_time(end)
        return (end - start) * 1e3

    def watch(self, model: Any) -> None:
        for block in model.blocks():
            module = model.get_submodule(block.name)
            self._hook(module, "block", block.name)
            for part in module.modules():
                if isinstance(part, Scan2d):
                    self._hook(part, "scan", block.name)

    def _hook(self, module: torch.nn.Module, kind: str, name: str) -> None:
        def start(*_: Any) -> None:
            self.marks.append((kind, name, True, self.now()))

        def end(*_: Any) -> None:
            self.marks.append((kind, name, False, self.now()))

        self.handles.append(module.register_forward_pre_hook(start))
        self.handles.append(module.register_forward_hook(end))

    def remove(self) -> None:
        while self.handles:
            self.handles.pop().remove()

    def plain(self, model: Any, pixels: torch.Tensor) -> float:
        """Milliseconds of one pass of a model that is not watched."""
        self._synchronise()
        with torch.no_grad():
            first = self.now()
            model(pixels)
            last = self.now()
        self._synchronise()
        return self.ms(first, last)

    def run(self, model: Any, pixels: torch.Tensor) -> Lap:
        """One forward pass with the clocks on; hooks must have been set by `watch`."""
        self.marks.clear()
        self._synchronise()
        with torch.no_grad():
            first = self.now()
            model(pixels)
            last = self.now()
        self._synchronise()
        spans: dict[tuple[str, str], float] = {}
        before: dict[str, float] = {}
        started: dict[tuple[str, str], Any] = {}
        border = first
        for kind, name, is_start, at in self.marks:
            if is_start:
                started[kind, name] = at
                if kind == "block":
                    before[name] = self.ms(border, at)
            else:
                spans[kind, name] = self.ms(started[kind, name], at)
                if kind == "block":
                    border = at
        return Lap(self.ms(first, last), spans, before, self.ms(border, last))

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
