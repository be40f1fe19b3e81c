"""The first use on a device: every kernel once, forward and backward, against the definition.

Compilers differ, and nobody here can try every GPU; a wrong answer must be found before it is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from kernels import reference
from kernels._triton.configs import MODULES
from kernels._triton.launch import use_regime
from kernels.scan_order import scan_order

TOLERANCE = 1e-4
# Two channel blocks, pads in every second sequence, states stored once between chunks.
BATCH, CHANNELS, HEIGHT, WIDTH, STATES, RANK = 1, 36, 23, 13, 16, 3
SETS = 4


def self_check(device: torch.device) -> str | None:
    """What is wrong with the kernels on `device`; None if they agree with the reference.

    Takes some seconds, most of them compilation, once per device and process; if something is
    wrong, a warning says so, once.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return _checked(device)


@lru_cache(maxsize=32)
def _checked(device: torch.device) -> str | None:
    problem = find_problem(device)
    if problem is not None:
        warnings.warn(
            f"The Triton scan kernels are not used on {device}: {problem}. Scans run in plain "
            "PyTorch there, many times slower. Please report this with the GPU's name and the "
            "versions of triton and torch.",
            RuntimeWarning,
            stacklevel=3,
        )
    return problem


def find_problem(
    device: torch.device, sizes: tuple[int, int, int, int] = (CHANNELS, HEIGHT, WIDTH, STATES)
) -> str | None:
    """Run both scans in both regimes; the first disagreement in words."""
    for regime in MODULES:
        for name, check in (("scan2d", _scan2d_errors), ("selective_scan", _row_errors)):
            try:
                with use_regime(regime):
                    errors = check(device, *sizes)
            except Exception as error:  # a compiler or driver may fail in any way
                return f"the self-check could not run {name} ({regime}): {error!r:.300}"
            for what, value in errors.items():
                # Not "value > TOLERANCE": NaN is wrong, too.
                if not value <= TOLERANCE:
                    return (
                        f"the self-check found {name} ({regime}) wrong: {what} differs from the "
                        f"reference by {value:.1e} (relative L2, allowed {TOLERANCE:.0e})"
                    )
    return None


def _scan2d_errors(
    device: torch.device, channels: int, height: int, width: int, states: int
) -> dict[str, float]:
    from kernels import triton_scan

    random = _generator()
    order = scan_order("es2d", height, width, step=2)
    inputs = {
        "tokens": random(BATCH, height * width, channels),
        "x_proj_weight": random(SETS, RANK + 2 * states, channels) / channels**0.5,
        "dt_projs_weight": random(SETS, channels, RANK) / RANK**0.5,
        "dt_projs_bias": random(SETS, channels) * 0.5 - 3,
        "A_logs": torch.log(torch.arange(1, states + 1.0)).repeat(SETS * channels, 1),
        "Ds": random(SETS * channels),
    }
    grad_y = random(BATCH, height * width, channels)

    def exact(*leaves: Tensor) -> tuple[Tensor, ...]:
        x, *parameters = leaves
        on_map = x.transpose(1, 2).reshape(BATCH, channels, height, width)
        run: Callable[..., Tensor] = reference.scan2d_reference
        return (run(on_map, *parameters, order).flatten(2).transpose(1, 2),)

    forward: Callable[..., tuple[Tensor, ...]] = triton_scan.scan2d_forward
    backward: Callable[..., tuple[Tensor, ...]] = triton_scan.scan2d_backward
    given = [t.to(device) for t in inputs.values()]
    y, *saved = forward(*given, order, True)
    grads = backward(grad_y.to(device), *given, *saved, order)
    return _errors(exact, inputs, grad_y, {"the output": y}, grads)


def _row_errors(
    device: torch.device, channels: int, height: int, width: int, states: int
) -> dict[str, float]:
    from kernels import triton_scan

    random = _generator()
    groups, length = 2, height * width // 2
    inputs = {
        "u": random(BATCH, groups * channels, length),
        "delta": random(BATCH, groups * channels, length) - 2,
        "A": -torch.arange(1, states + 1.0).repeat(groups * channels, 1),
        "B": random(BATCH, groups, states, length),
        "C": random(BATCH, groups, states, length),
        "D": random(groups * channels),
        "delta_bias": random(groups * channels),
    }
    grad_y = random(BATCH, groups * channels, length)

    def exact(*leaves: Tensor) -> tuple[Tensor, ...]:
        run: Callable[..., tuple[Tensor, ...]] = reference.selective_scan_reference
        return run(*leaves, delta_softplus=True)

    forward: Callable[..., tuple[Tensor, ...]] = triton_scan.selective_scan_forward
    backward: Callable[..., tuple[Tensor, ...]] = triton_scan.selective_scan_backward
    given = [t.to(device) for t in inputs.values()]
    y, last, checkpoints = forward(*given, True, True)
    grads = backward(grad_y.to(device), *given, True, checkpoints)
    return _errors(exact, inputs, grad_y, {"the output": y, "the last state": last}, grads)


def _generator() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


def _errors(
    exact: Callable[..., tuple[Tensor, ...]],
    inputs: dict[str, Tensor],
    grad_y: Tensor,
    outputs: dict[str, Tensor],
    grads: Sequence[Tensor],
) -> dict[str, float]:
    """Relative L2 of the outputs and every gradient against the reference in float64."""
    # An ordinary differentiated run, whatever the caller is in the middle of.
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [t.clone().double().requires_grad_() for t in inputs.values()]
        right = list(exact(*leaves))
        right += torch.autograd.grad(right[0], leaves, grad_y.clone().double())
    names = (*outputs, *(f"the gradient of {name}" for name in inputs))
    return {
        name: float((ours.cpu().double() - theirs).norm() / theirs.norm())
        for name, ours, theirs in zip(names, (*outputs.values(), *grads), right, strict=True)
    }
