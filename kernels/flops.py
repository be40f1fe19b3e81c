"""What torch's FLOP counter is told of the scans.

A multiply-accumulate counts two operations and the recurrence as in `models.complexity`, so the
counter gives twice a model's multiply-accumulates. A backward pass counts twice its forward pass,
as torch counts that of a product. The formulas get an operator's arguments, shapes for tensors.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

from kernels.cost import convention_flops
from kernels.operands import size_of

_COUNTER = "torch.utils.flop_counter"
Formulas = Mapping[Any, Callable[..., int]]


def scan2d(tokens, x_proj, dt_weight, dt_bias, A_logs, Ds, *settings, **_) -> int:
    batch, _n_tokens, channels = tokens
    order, height, width, table = settings[:4]
    size = size_of(order, height, width, table)
    steps = batch * size.n_sequences * size.length
    products = steps * channels * (x_proj[1] + dt_weight[2])
    return 2 * (products + convention_flops(1, 1, steps, channels, A_logs[1]))


def scan2d_backward(grad_y, *rest, **_) -> int:
    # Between the tensors of the forward pass and the order lie those that it saved.
    return 2 * scan2d(*rest[:6], *rest[8:12])


def selective_scan(u, delta, A, B, *_, **__) -> int:
    batch, rows, length = u
    return 2 * convention_flops(batch, B[1], length, rows // B[1], A[1])


def selective_scan_backward(grad_y, *rest, **_) -> int:
    return 2 * selective_scan(*rest)


def register_when_imported(formulas: Formulas) -> None:
    """Tell torch's counter of the operators when it is imported, at once if it is already.

    It is not imported here because it imports Triton, and logs a warning where that is missing.
    """
    if _COUNTER in sys.modules:
        _register(formulas)
    else:
        sys.meta_path.insert(0, _Finder(formulas))


def _register(formulas: Formulas) -> None:
    from torch.utils.flop_counter import register_flop_formula

    for operator, formula in formulas.items():
        register_flop_formula(operator.overloadpacket)(formula)


class _Finder(MetaPathFinder):
    """Finds torch's counter as Python does and registers the formulas after its code has run."""

    def __init__(self, formulas: Formulas) -> None:
        self.formulas = formulas

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != _COUNTER or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _register(self.formulas)

            loader.exec_module = exec_module
        return spec
