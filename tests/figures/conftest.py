"""Small results made by hand, so that figures are tested without a model."""

from __future__ import annotations

import numpy as np
import pytest

import kernels
from workbench.results import (
    AttributionResult,
    BlockEvidence,
    BlockTime,
    ErfResult,
    OpTime,
    ProfileResult,
    Provenance,
    ScanResult,
)


def provenance(scan: str, size: int = 64, **changes: object) -> Provenance:
    values: dict = {
        "model": "efficientvmamba_test",
        "weights": "random, seed 0",
        "weights_sha256": "00",
        "is_random": True,
        "trained_scan": None,
        "scan": scan,
        "image": "chelsea",
        "image_sha256": "11",
        "crop": (0, 0, size, size),
        "input_size": (size, size),
        "definition": "by hand",
        "device": "CPU, 2 threads",
        "backend": "cpu",
    }
    return Provenance(**(values | changes))


def scan_result(scan: str, size: int = 64, stride: int = 4, stage: int = 1) -> ScanResult:
    spec = kernels.ScanSpec.parse(scan)
    side = size // stride
    order = kernels.scan_order(spec.name, side, side, **spec.params)
    return ScanResult(
        provenance=provenance(str(spec), size),
        stage=stage,
        height=side,
        width=side,
        stride=stride,
        n_blocks=2,
        has_scan=True,
        note="",
        index=order.index,
        parameter_set=np.asarray(order.parameter_set),
        merge=order.merge,
        is_verified=True,
        disagreement="",
        metrics=order.metrics(),
    )


def erf_result(scan: str, sigma: float = 6.0, size: int = 64, **changes: object) -> ErfResult:
    rows, columns = np.mgrid[:size, :size] + 0.5
    distance = np.hypot(rows - 34, columns - 34)
    mass = np.exp(-((distance / sigma) ** 2) / 2)
    mass /= mass.sum()
    radius = np.arange(0, 64, 2.0)
    values: dict = {
        "provenance": provenance(scan, size),
        "stage": 1,
        "y": 8,
        "x": 8,
        "stride": 4,
        "mass": mass.astype(np.float32),
        "radius_px": radius.astype(np.float32),
        "radial_mass": np.array([mass[distance <= r].sum() for r in radius], np.float32),
        "n_images": 8,
        "image_names": ("chelsea",),
        "metrics": {"area50": 0.05, "area90": 0.2, "radius50_px": 7.1, "radius90_px": 12.9},
    }
    return ErfResult(**(values | changes))


def profile_result(scan: str, factor: float = 1.0, **changes: object) -> ProfileResult:
    blocks = tuple(
        BlockTime(
            stage=stage,
            block=1,
            name=f"layers.{stage}",
            kind="evss" if stage in (1, 2) else "inverted residual",
            p50_ms=10.0 * factor if stage in (1, 2) else 5.0,
            scan_ms=4.0 * factor if stage in (1, 2) else 0.0,
        )
        for stage in (1, 2, 3, 4)
    )
    total = sum(block.p50_ms for block in blocks)
    values: dict = {
        "provenance": provenance(scan),
        "batch": 1,
        "warmup": 1,
        "repeats": 5,
        "p20_ms": total * 0.9,
        "p50_ms": total,
        "p80_ms": total * 1.1,
        "blocks": blocks,
        "ops": (OpTime(name="aten::addmm", self_ms=7.0, calls=4),),
        "max_abs_error": 1e-6,
        "is_correct": True,
        "macs": 1e9 * factor,
        "n_parameters": 10,
        "scan_tokens": int(1000 * factor),
        "scan_depth": int(100 * factor),
        "clock": "time.perf_counter",
    }
    return ProfileResult(**(values | changes))


@pytest.fixture
def attribution() -> AttributionResult:
    strides = (4, 8, 16, 32)
    maps = tuple(np.full((64 // s, 64 // s), (s / 32) ** 2, np.float32) for s in strides)
    evidence = (
        BlockEvidence(stage=1, block=1, scan=1.0, conv=-0.5, residual=0.5, total=1.0, error=1e-8),
        BlockEvidence(stage=2, block=1, scan=1.0, conv=0.5, residual=0.5, total=2.0, error=2e-8),
    )
    return AttributionResult(
        provenance=provenance("es2d:step=2"),
        target=1,
        target_name="church",
        probability=0.5,
        method="Grad-CAM",
        maps=maps,
        strides=strides,
        layers=("", "", "", ""),
        evidence=evidence,
    )


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
