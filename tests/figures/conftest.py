"""Small results made by hand, so that figures are tested without a model."""

from __future__ import annotations

import numpy as np
import pytest

import kernels
from workbench.results import (
    AttributionResult,
    BlockEvidence,
    BlockTime,
    ErfBlockPaths,
    ErfPathsResult,
    ErfPhase,
    ErfPhasesResult,
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


def erf_metrics(mass: np.ndarray, centre: tuple[float, float]) -> dict[str, float]:
    """Enough numbers of a map for a figure, by the plainest means."""
    rows, columns = np.mgrid[: mass.shape[0], : mass.shape[1]] + 0.5
    distance = np.hypot(rows - centre[0], columns - centre[1])
    densest = np.cumsum(np.sort(mass.ravel())[::-1])
    nearest = np.cumsum(mass.ravel()[np.argsort(distance, axis=None)])
    far = np.sort(distance, axis=None)
    com = (float((rows * mass).sum()), float((columns * mass).sum()))
    numbers = {
        f"area{t}": (np.searchsorted(densest, t / 100) + 1) / mass.size for t in (20, 50, 90, 99)
    }
    numbers |= {f"radius{t}_px": far[np.searchsorted(nearest, t / 100)] for t in (50, 90)}
    numbers |= {f"{kind}{t}": t / 400 for kind in ("square", "named") for t in (20, 30, 50)}
    numbers |= {"square99": float("nan"), "named99": float("nan")}
    numbers |= {"com_y_px": com[0], "com_x_px": com[1]}
    numbers |= {"com_shift_px": np.hypot(com[0] - centre[0], com[1] - centre[1])}
    numbers |= {"spread_px": np.sqrt((mass * distance**2).sum()), "anisotropy": 1.2}
    numbers |= {"axis_deg": 0.0, "gauss_sigma_y_px": 6.0, "gauss_sigma_x_px": 7.0}
    numbers |= {"gauss_r2": 0.93, "entropy_bits": 9.0, "entropy_area": 2.0**9 / mass.size}
    numbers |= {"peak_y_px": centre[0], "peak_x_px": centre[1], "nonzero": 1.0}
    numbers |= {"uniform_distance": 0.7, "split_distance": 0.08}
    return {key: float(value) for key, value in numbers.items()}


def erf_result(scan: str, sigma: float = 6.0, size: int = 64, **changes: object) -> ErfResult:
    """A Gaussian around token (8, 8) of a map with stride 4, as the mean of eight images."""
    rows, columns = np.mgrid[:size, :size] + 0.5
    centre = (34.0, 34.0)
    distance = np.hypot(rows - centre[0], columns - centre[1])
    mass = np.exp(-((distance / sigma) ** 2) / 2)
    mass /= mass.sum()
    radius = np.arange(0, size, 2.0)
    curve = np.array([mass[distance <= r].sum() for r in radius])
    metrics = erf_metrics(mass, centre)
    steps = np.array([1, 2, 4, 8], np.int32)
    area50, area90 = metrics["area50"], metrics["area90"]
    reach = np.zeros((size, size), np.uint8)
    reach[8:56, 4:60] = 1
    values: dict = {
        "provenance": provenance(scan, size),
        "network": "Test",
        "unit": "stage1",
        "unit_label": "stage 1",
        "gates": "live",
        "stage": 1,
        "y": 8,
        "x": 8,
        "rows": size // 4,
        "columns": size // 4,
        "stride": 4,
        "centre": centre,
        "definition": "mass",
        "parts": {
            "objective": "sum over channels of the token's positive activations",
            "rectification": "absolute value, summed over colours",
            "averaging": "each image divided by its own sum, then the mean",
            "transform": "none",
            "metric": "densest pixels that hold a share of the mass",
        },
        "mass": mass.astype(np.float32),
        "raw_sum": 1.0,
        "radius_px": radius.astype(np.float32),
        "radial_mass": curve.astype(np.float32),
        "radial_low": np.maximum(curve - 0.02, 0).astype(np.float32),
        "radial_high": np.minimum(curve + 0.02, 1).astype(np.float32),
        "n_images": 8,
        "n_planned": 8,
        "image_names": tuple(f"photo {i}" for i in range(8)),
        "skipped": (),
        "metrics": metrics,
        "metric_low": {key: 0.9 * metrics[key] for key in ("area50", "area90", "radius50_px")},
        "metric_high": {key: 1.1 * metrics[key] for key in ("area50", "area90", "radius50_px")},
        "n_bootstrap": 200,
        "convergence_n": steps,
        "convergence_area50": (area50 * (1 - 0.3 / steps)).astype(np.float32),
        "convergence_area90": (area90 * (1 - 0.3 / steps)).astype(np.float32),
        "convergence_split": np.array([np.nan, 0.3, 0.2, 0.1], np.float32),
        "saturation": "",
        "reach": reach,
        "reach_share": float(reach.mean()),
        "reach_note": "",
    }
    return ErfResult(**(values | changes))


def phases_result(scan: str = "es2d:step=2", **changes: object) -> ErfPhasesResult:
    """The four tokens of the cell around (8, 8), each in a group of its own."""
    phases = tuple(
        ErfPhase(
            row=row,
            column=column,
            group=2 * column + row,
            direction="row-major" if (row + column) % 2 == 0 else "column-major",
            field=erf_result(scan, 5.0 + row + 2 * column, y=8 + row, x=8 + column),
        )
        for row in (0, 1)
        for column in (0, 1)
    )
    values: dict = {"provenance": provenance(scan), "stage": 1, "step": 2, "phases": phases}
    return ErfPhasesResult(**(values | changes))


def paths_result(cells: int = 16, blocks: int = 3, **changes: object) -> ErfPathsResult:
    """Blocks whose paths' maps add up to the whole; the last one is an inverted residual."""
    rng = np.random.default_rng(0)
    total = rng.normal(size=(cells, cells))
    total /= np.abs(total).sum()
    listed = []
    for i in range(blocks):
        is_last = i == blocks - 1
        paths = ("residual", "conv", "gate") if is_last else ("residual", "scan", "conv", "gate")
        parts = rng.dirichlet(np.ones(len(paths)))
        maps = np.array([share * total for share in parts])
        listed.append(
            ErfBlockPaths(
                stage=1 if i < 2 else 2,
                block=i + 1 if i < 2 else i - 1,
                kind="inverted residual" if is_last else "evss",
                paths=paths,
                maps=maps.astype(np.float32),
                shares=tuple(float(part) for part in parts),
                signed=tuple(float(part) for part in parts),
                error=(1 + i) * 1e-7,
            )
        )
    values: dict = {
        "provenance": provenance("es2d:step=2", 4 * cells),
        "unit": "stage2",
        "unit_label": "stage 2",
        "gates": "live",
        "stage": 2,
        "y": 4,
        "x": 4,
        "stride": 8,
        "cell": 4,
        "total": total.astype(np.float32),
        "blocks": tuple(listed),
        "n_images": 8,
        "image_names": ("chelsea",),
    }
    return ErfPathsResult(**(values | changes))


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
