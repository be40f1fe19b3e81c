"""Parameters and multiply-accumulates per stage, measured on the running model.

Two counts are mixed, as the field does (VMamba, EfficientVMamba): matrix products and convolutions
count one per multiply-accumulate (torch's counter halved), a scan counts 9*B*L*(K*D)*N + B*L*(K*D)
operations with L tokens in each of K sequences of D channels and N states. Norms, activations and
additions count nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from kernels import scan_order
from models.efficientvmamba import EfficientVMamba, with_scan
from models.layers import Scan2d

CONVENTION = (
    "one per multiply-accumulate in products and convolutions, plus 9*B*L*(K*D)*N + B*L*(K*D) "
    "per scan; the two are mixed by convention"
)


@dataclass(frozen=True, slots=True)
class PartComplexity:
    """Cost of the stem, of one stage (with the patch merging after it) or of the head."""

    name: str  # "stem", "stage 1" ... "stage 4", "head"
    n_parameters: int
    macs: int  # products, convolutions and scans
    scan_macs: int  # share of the scans' recurrences in `macs`


@dataclass(frozen=True, slots=True)
class Complexity:
    """Cost of one image, and of the weights."""

    height: int  # input pixels
    width: int
    parts: tuple[PartComplexity, ...]
    convention: str = CONVENTION

    @property
    def stages(self) -> tuple[PartComplexity, ...]:
        return tuple(part for part in self.parts if part.name.startswith("stage"))

    @property
    def n_parameters(self) -> int:
        return sum(part.n_parameters for part in self.parts)

    @property
    def macs(self) -> int:
        return sum(part.macs for part in self.parts)

    @property
    def scan_macs(self) -> int:
        return sum(part.scan_macs for part in self.parts)


def complexity(model: EfficientVMamba, size: int | tuple[int, int] = 224) -> Complexity:
    """Parameters and multiply-accumulates for one image of `size` (or height, width) pixels.

    Runs a twin of the model once, where the model is; the scans are counted and not run.
    """
    height, width = (size, size) if isinstance(size, int) else size
    weight = next(model.parameters())
    image = torch.zeros(1, 3, height, width, device=weight.device, dtype=weight.dtype)
    # A twin, because `model` may be shared: nobody else sees the counting modules and hooks.
    twin = with_scan(model, model.scan_spec).eval()
    scans = [
        _count_scan(parent, name)
        for parent in twin.modules()
        for name, child in parent.named_children()
        if isinstance(child, Scan2d)
    ]
    parts = _parts(twin)
    counter = _ProductCounter()
    products: Counter[str] = Counter()
    for name, modules in parts.items():
        for module in modules:
            _watch(module, name, counter, products)
    with torch.no_grad(), counter:
        twin(image)
    found = []
    for name, modules in parts.items():
        inside = [s for s in scans if any(s is m for module in modules for m in module.modules())]
        recurrence = sum(s.recurrence for s in inside)
        found.append(
            PartComplexity(
                name=name,
                n_parameters=sum(p.numel() for module in modules for p in module.parameters()),
                macs=products[name] + sum(s.products for s in inside) + recurrence,
                scan_macs=recurrence,
            )
        )
    return Complexity(height, width, tuple(found))


class _CountedScan(Scan2d):
    """Stands in for a scan: notes what it costs by definition, whatever a backend does inside."""

    products = 0
    recurrence = 0

    def forward(
        self,
        x: Tensor,
        x_proj_weight: Tensor,
        dt_projs_weight: Tensor,
        dt_projs_bias: Tensor,
        A_logs: Tensor,
        Ds: Tensor,
    ) -> Tensor:
        batch, channels, height, width = x.shape
        order = scan_order(self.spec, height, width)
        tokens = batch * order.n_sequences * order.length
        states, rank = A_logs.shape[1], dt_projs_weight.shape[2]
        self.products += tokens * channels * (x_proj_weight.shape[1] + rank)
        self.recurrence += tokens * channels * (9 * states + 1)
        return x


def _count_scan(parent: nn.Module, name: str) -> _CountedScan:
    scan = parent.get_submodule(name)
    assert isinstance(scan, Scan2d)
    counted = _CountedScan(scan.spec, scan.backend)
    parent._modules[name] = counted
    return counted


class _ProductCounter(TorchDispatchMode):
    """Multiply-accumulates of products and convolutions: the formulas of torch's counter, halved.

    torch's own `FlopCounterMode` also hooks every module of the process, other threads' models
    included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        flops = flop_registry.get(func._overloadpacket)
        if flops is None:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if flops is not None:
            self.macs += flops(*args, **kwargs, out_val=result) // 2
        return result


def _watch(module: nn.Module, name: str, counter: _ProductCounter, sums: Counter[str]) -> None:
    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        sums[name] -= counter.macs

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        sums[name] += counter.macs

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def _parts(model: EfficientVMamba) -> dict[str, list[nn.Module]]:
    """Modules that run one after the other, by the part of the network they belong to."""
    parts: dict[str, list[nn.Module]] = {"stem": list(model.patch_embed.values())}
    for info in model.blocks():
        parts.setdefault(f"stage {info.stage}", []).append(model.get_submodule(info.name))
    for number, stage in enumerate(model.stages(), start=1):
        merging = stage.merging()
        if merging is not None:
            parts[f"stage {number}"].append(merging)
    parts["head"] = [model.classifier.norm, model.classifier.head]
    return parts
