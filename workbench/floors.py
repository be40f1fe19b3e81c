"""Floors of a cost grid at one setting: plain numbers, for analyses, figures and files alike.

A setting is {"device", "size", "batch", "step", "dtype", "passes"}: a device's name or "here",
input pixels, images, the step of ES2D, an activation type, "forward" or "train". The page computes
the same in kernel_floors.js.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import BadInputError, NotAvailableError
from workbench.kernel_results import COST_VALUES, CostGrid, Rates
from workbench.view import HERE

Setting = Mapping[str, Any]

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of an activation
PASSES = {"forward": ("forward",), "train": ("forward", "backward")}
# Steps that wait for each other, in lengths: the backward pass goes through a scan twice, once to
# have its states again (`kernels.cost`).
DEPTHS = {"forward": 1, "train": 3}
LIMITERS = ("memory", "FMA", "exp", "launch latency")
LAUNCH = 3  # index of the launch latency in `LIMITERS`


@dataclass(frozen=True, slots=True, kw_only=True)
class Floors:
    """Every scheme and stage at one setting, arrays `[schemes, stages]`; counts of one scan."""

    tokens: np.ndarray  # steps of all images and sequences, pads included
    depth: np.ndarray  # steps that wait for each other
    bytes: np.ndarray
    flops: np.ndarray
    fmas: np.ndarray
    exps: np.ndarray
    memory_s: np.ndarray
    fma_s: np.ndarray
    exp_s: np.ndarray
    floor_s: np.ndarray  # the largest of the three
    least_s: np.ndarray  # no less than starting a kernel takes
    limiter: np.ndarray  # index into `LIMITERS`

    def network(self, name: str, scheme: int, blocks: tuple[int, ...]) -> float:
        """Sum of one of the arrays over the scans of a network, each stage times its blocks."""
        return float((getattr(self, name)[scheme] * np.asarray(blocks)).sum())


def rates_of(grid: CostGrid, device: str) -> Rates | None:
    """Rates of a device of the grid; None for this machine before it was measured.

    Raises BadInputError where the grid has no such device.
    """
    for rates in grid.devices:
        if device == rates.device or (device == HERE and rates.kind == "measured"):
            return rates
    if device == HERE:
        return None
    listed = ", ".join(rates.device for rates in grid.devices)
    raise BadInputError(f"No rates are known for {device!r}. Choose one of: {listed}, {HERE}.")


def known_rates(grid: CostGrid, setting: Setting) -> Rates:
    """Rates of the setting's device; NotAvailableError for this machine before it was measured."""
    rates = rates_of(grid, str(setting["device"]))
    if rates is None:
        raise NotAvailableError(
            "This machine's ceilings were not measured yet. Run the roofline first, or choose a "
            "published device."
        )
    return rates


def position(kind: str, value: object, allowed: tuple[Any, ...]) -> int:
    """Index of `value`; BadInputError names what there is instead."""
    if value not in allowed:
        listed = ", ".join(map(str, allowed))
        raise BadInputError(f"The cost grid has no {kind} {value}. Choose one of: {listed}.")
    return allowed.index(value)


def floors(grid: CostGrid, rates: Rates, setting: Setting) -> Floors:
    """Floors of all schemes and stages; BadInputError for a size or type that is not there."""
    size = position("size", setting["size"], grid.sizes)
    width = WIDTHS[list(WIDTHS)[position("type", setting["dtype"], tuple(WIDTHS))]]
    listed = PASSES[list(PASSES)[position("passes", setting["passes"], tuple(PASSES))]]
    batch = int(setting["batch"])
    values = grid.values[:, size, :, [grid.passes.index(p) for p in listed]].sum(0)
    part = {name: values[..., i] for i, name in enumerate(COST_VALUES)}
    moved = batch * (part["activations"] * width + part["bytes"]) + part["once"]
    fmas, exps = batch * part["fmas"], batch * part["exps"]
    times = (moved / rates.memory_bytes_per_s, fmas / rates.fma_per_s, exps / rates.exp_per_s)
    floor = np.max(times, axis=0)
    length = grid.length[:, size].astype(np.int64)
    return Floors(
        tokens=batch * grid.sequences[:, size].astype(np.int64) * length,
        depth=length * DEPTHS[setting["passes"]],
        bytes=moved,
        flops=batch * part["flops"],
        fmas=fmas,
        exps=exps,
        memory_s=times[0],
        fma_s=times[1],
        exp_s=times[2],
        floor_s=floor,
        least_s=np.maximum(floor, rates.launch_s),
        limiter=np.where(floor < rates.launch_s, LAUNCH, np.argmax(times, axis=0)),
    )
