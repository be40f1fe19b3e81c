"""Cost per stage: the field's published totals, and torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import models


@pytest.mark.parametrize(
    ("size", "gmacs"), [("tiny", "0.788"), ("small", "1.318"), ("base", "3.951")]
)
def test_totals_at_224(size: str, gmacs: str) -> None:
    model = models.create_model(f"efficientvmamba_{size}").train()
    cost = models.complexity(model, 224)
    assert f"{cost.macs / 1e9:.3f}" == gmacs
    assert cost.n_parameters == sum(p.numel() for p in model.parameters())
    assert [part.name for part in cost.parts] == [
        "stem",
        *(f"stage {n}" for n in range(1, 5)),
        "head",
    ]
    assert [part.scan_macs > 0 for part in cost.stages] == [True, True, False, False]
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_products_agree_with_torch() -> None:
    """On the reference backend, which projects with plain products, torch sees all of them."""
    model = models.create_model("efficientvmamba_test").eval()
    cost = models.complexity(model, (64, 96))
    assert (cost.height, cost.width) == (64, 96)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 64, 96))
    scans = counter.get_flop_counts()
    inside = sum(
        sum(counts.values()) for name, counts in scans.items() if name.endswith(".op.scan")
    )
    by_definition = sum(
        # K sequences of L tokens, 2C channels to dt_rank + 2N, and dt_rank back to 2C channels
        4 * (h * w // 4) * 2 * c * (1 + 32 + 1)
        for h, w, c in ((16, 24, 16),)
    ) + sum(4 * (h * w // 4) * 2 * c * (2 + 32 + 2) for h, w, c in ((8, 12, 32),))
    others = (counter.get_total_flops() - inside) // 2
    assert cost.macs - cost.scan_macs == others + by_definition


def test_scan_counts_follow_the_scheme() -> None:
    model = models.create_model("efficientvmamba_test")
    sparse = models.complexity(model, 64).scan_macs
    assert sparse == sum(h * h * 2 * c * (9 * 16 + 1) for h, c in ((16, 16), (8, 32)))
    assert models.complexity(models.with_scan(model, "ss2d"), 64).scan_macs == 4 * sparse
