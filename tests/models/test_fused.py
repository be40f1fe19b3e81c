"""The network with fused passes is the network without them, and who watches sees everything."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

import models
from kernels import map_ops
from models.bench import enliven
from models.efficientvmamba import EfficientVMamba


@pytest.fixture
def model() -> EfficientVMamba:
    model = models.create_model("efficientvmamba_test").eval()
    enliven(model)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0.0, 0.2, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0.0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def no_fusing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_ops, "is_usable", lambda *tensors: False)


def distance(ours: Tensor, plain: Tensor) -> float:
    return float((ours - plain).norm() / plain.norm())


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 3, 72, 40), (3, 3, 33, 95)], ids=str)
def test_network_is_the_same_without_them(
    model: EfficientVMamba, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(shape)
    with torch.no_grad():
        ours = [model(x), *model.forward_intermediates(x)[1]]
        no_fusing(monkeypatch)
        plain = [model(x), *model.forward_intermediates(x)[1]]
    watched = [model(x).detach(), *(t.detach() for t in model.forward_intermediates(x)[1])]
    for given, folded, exact in zip(ours, plain, watched, strict=True):
        assert distance(given, folded) <= 1e-6
        assert distance(given, exact) <= 1e-6


def test_weights_may_change_between_calls(model: EfficientVMamba) -> None:
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        model(x)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(1.1)
    plain = model(x).detach()
    with torch.no_grad():
        assert distance(model(x), plain) <= 1e-6


def test_every_hook_fires_and_sees_the_plain_numbers(model: EfficientVMamba) -> None:
    """One module after the other is watched: what it took and gave is what it is without fusing."""
    x = torch.randn(1, 3, 32, 32)
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((args[0].detach().clone(), output.detach().clone()))

    n_watched = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleDict | nn.ModuleList) or hasattr(module, "named_blocks"):
            continue
        handle = module.register_forward_hook(keep)
        try:
            seen.clear()
            model(x)
            expected = list(seen)
            seen.clear()
            with torch.no_grad():
                model(x)
        finally:
            handle.remove()
        if name.endswith((".blocks", "classifier")):
            continue  # containers that are not called
        assert len(seen) == len(expected) > 0, name
        n_watched += 1
        for given, wanted in zip(seen, expected, strict=True):
            assert all(distance(a, b) <= 1e-6 for a, b in zip(given, wanted, strict=True)), name
    assert n_watched > 50


def test_hooks_on_all_modules_fire(model: EfficientVMamba) -> None:
    x = torch.randn(1, 3, 64, 64)
    called: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, a, y: called.append(m))
    try:
        model(x)
        expected = list(called)
        called.clear()
        with torch.no_grad():
            model(x)
    finally:
        handle.remove()
    assert called == expected


def test_a_flop_counter_sees_all_products(model: EfficientVMamba) -> None:
    x = torch.randn(1, 3, 64, 64)
    counts = []
    for with_gradients in (True, False):
        counter = FlopCounterMode(display=False)
        with torch.set_grad_enabled(with_gradients), counter:
            model(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_a_profiler_sees_them(model: EfficientVMamba) -> None:
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        model(x)
        with profile() as recorded:
            model(x)
    names = {f"map_ops::{n}" for n in ("layer_norm", "depthwise_conv", "affine", "normed_mean")}
    assert names | {"map_ops::gated_sum"} <= {e.key for e in recorded.key_averages()}


def test_training_and_state_are_untouched(model: EfficientVMamba) -> None:
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model(x)
    assert all(type(p) is nn.Parameter for p in model.parameters())
    model.train()
    with profile() as recorded:
        model(x).sum().backward()
    assert not any(e.key.startswith("map_ops") for e in recorded.key_averages())
    assert all(p.grad is not None for p in model.parameters())
