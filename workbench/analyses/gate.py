"""The gate before a time is shown: does the network compute what the reference computes?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from kernels import scan_order
from models import with_scan
from models.layers import Scan2d
from workbench.analyses.checks import explain_non_finite
from workbench.analyses.maps import stage_shape
from workbench.errors import BadInputError
from workbench.progress import CancelToken

# Relative L2 distance from the reference backend; float32 rounding stays below 1e-5.
TOLERANCE = 1e-4
# The reference takes its steps one by one, about 0.2 ms each; beyond this many the gate uses a
# smaller input.
MAX_REFERENCE_STEPS = 8_000


@dataclass(frozen=True)
class Gate:
    """Distance from the reference backend on the same input."""

    max_abs: float  # of the logits
    is_correct: bool
    note: str  # what a reader must know


def compare_with_reference(model: Any, pixels: torch.Tensor, token: CancelToken) -> Gate:
    """Compare the logits, and every scan's output on the very input that the reference got.

    The logits alone would forgive too much: a layer norm follows each scan and hides its scale.
    """
    notes = []
    height, width = pixels.shape[-2:]
    size = gate_size(model, height, width)
    if size != (height, width):
        notes.append(
            f"Compared with the reference at {size[0]} x {size[1]} px, not {height} x {width}: the "
            "reference takes its steps one by one and would be slow."
        )
        pixels = torch.nn.functional.interpolate(pixels, size=size, mode="area")
    reference = with_scan(model, model.scan_spec)
    distances: dict[str, float] = {}
    handles = []
    for name, module in reference.named_modules():
        if isinstance(module, Scan2d):
            module.backend = "reference"

            def compare(_: Any, inputs: Any, expected: torch.Tensor, name: str = name) -> None:
                token.check()
                given = model.get_submodule(name)(*inputs)
                distances[name] = relative_distance(given, expected)

            handles.append(module.register_forward_hook(compare))
    try:
        with torch.no_grad(), one_thread():
            given, expected = model(pixels)[0], reference(pixels)[0]
    finally:
        for handle in handles:
            handle.remove()
    if not torch.isfinite(expected).all():
        raise BadInputError(explain_non_finite(model, "the logits"))
    for name, distance in distances.items():
        if not distance < TOLERANCE:
            notes.append(
                f"The output of {name} differs from the reference by {distance:.1e} (relative); "
                f"at most {TOLERANCE:.0e} is rounding."
            )
    distances["logits"] = relative_distance(given, expected)
    return Gate(
        float((given - expected).abs().max()),
        all(distance < TOLERANCE for distance in distances.values()),
        " ".join(notes),
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """One CPU thread for the block: the reference's thousands of small steps only wait for more.

    Measured on two busy cores: 1.8 s of processor time instead of 29 s.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def relative_distance(given: torch.Tensor, expected: torch.Tensor) -> float:
    """L2 distance over the L2 norm of `expected`."""
    given, expected = given.double(), expected.double()
    return float((given - expected).norm() / expected.norm().clamp_min(1e-30))


def reference_steps(model: Any, height: int, width: int) -> int:
    return sum(
        scan_order(model.scan_spec, *stage_shape(model, block.stage, height, width)[:2]).length
        for block in model.blocks()
        if block.has_scan
    )


def gate_size(model: Any, height: int, width: int) -> tuple[int, int]:
    """The input's size, or about the largest smaller one that the reference can afford.

    Sides stay congruent modulo 64: the map of every stage with a scan stays even or odd.
    """
    found = (height, width)
    while reference_steps(model, *found) > MAX_REFERENCE_STEPS:
        smaller = (_shrink(found[0]), _shrink(found[1]))
        if smaller == found:
            break
        found = smaller
    return found


def _shrink(side: int) -> int:
    """About three quarters of `side`, congruent to it modulo 64, at least 32 px."""
    target = max(side * 3 // 4, 32)
    smaller = side - -(-(side - target) // 64) * 64
    return smaller if smaller >= 32 else side
