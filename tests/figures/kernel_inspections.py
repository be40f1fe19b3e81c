"""Small results of the kernel inspector made by hand: nothing is compiled."""

from __future__ import annotations

from dataclasses import replace

from workbench.kernel_results import InspectResult, KernelChoice, KernelNumbers, TuneTrial
from workbench.results import UNKNOWN

A = "steps_forward-map-rank16-fp32-32x1x1"
B = "steps_forward-map-rank16-fp32-64x1x1"
AMD = "steps_forward-map-rank16-fp32-16x1x1"
STORED = {"registers": 160, "spill_bytes": 0, "shared_bytes": 128, "exp2_in_loops": 20}
STAGES = ("source", "source:kernels/_triton/device.py", "ttir", "ptx", "sass")
WORDS = "error: no tile\n" + "\n".join(f"steps.py:{i}: note <b>{i}</b>" for i in range(30))
NO_TRITON = "triton is not installed: `pip install triton` (Linux), no GPU is needed"
TARGETS = {"sm_80": "", "sm_90": "", "sm_100": "", "gfx942": ""}


def numbers(config: str = A, target: str = "sm_90", **changes: object) -> KernelNumbers:
    values: dict = {
        "config": config,
        "target": target,
        "product": {"sm_80": "A100", "sm_90": "H100", "sm_100": "B200", "gfx942": "MI300X"}[target],
        "status": "",
        "error_kind": "",
        "is_cached": True,
        "registers": 162,
        "shared_bytes": 128,
        "num_warps": 1,
        "blocks": 12,
        "warps": 12,
        "occupancy": 0.1875,
        "limiter": "registers (162 per thread)",
        "instructions": {"load": 40, "local": 0, "fma": 300, "exp2": 36, "other": 500},
        "loop_instructions": {"load": 7, "local": 0, "fma": 210, "exp2": 20, "other": 204},
        "exp2_in_loops": 20,
        "stage_ms": {"front end": 250.0, "ttir": 22.0, "ptx": 80.0, "cubin": 195.0},
        "compile_s": 0.55,
        "binary_bytes": 58_408,
        "triton_version": "3.8.0",
        "key": f"{target}/{config}",
        "stages": STAGES,
        "baseline": STORED,
    }
    return KernelNumbers(**(values | changes))


def failed(kind: str, status: str, config: str = A, target: str = "sm_90") -> KernelNumbers:
    product = numbers(target=target).product
    return KernelNumbers(
        config=config,
        target=target,
        product=product,
        status=status,
        error_kind=kind,
        is_cached=False,
    )


def choice(name: str, origin: str = "shipped") -> KernelChoice:
    parts = name.split("-")
    tile = [int(n) for n in parts[-1].split("x")] if parts[-1].count("x") == 2 else [0, 0, 8]
    return KernelChoice(
        name=name,
        kernel=parts[0],
        layout="-".join(parts[1:-2]),
        dtype=parts[-2],
        channels=tile[0],
        steps=tile[1],
        num_warps=tile[2],
        origin=origin,
        elements=tile[0] // 2,
    )


CHOICES = (
    choice(A),
    choice("steps_forward-map-rank16-fp32-8x1x1", "candidate"),
    choice(B, "ruled out"),
    choice("steps_forward-map-rank16-bf16-32x1x1"),
    choice("steps_forward-map-rank16-bf16-16x1x2", "candidate"),
    choice("steps_forward-rows-fp32-32x1x1"),
    choice("chunks_forward-map-rank16-fp32-4x64x8"),
    choice("chunks_forward-map-rank16-bf16-4x64x8"),
)


def spilling() -> KernelNumbers:
    return numbers(
        B,
        registers=255,
        spill_bytes=912,
        stack_bytes=456,
        occupancy=0.125,
        blocks=8,
        limiter="registers (255 per thread)",
        instructions={"load": 50, "local": 30, "fma": 300, "exp2": 36, "other": 500},
        loop_instructions={"load": 9, "local": 12, "fma": 210, "exp2": 24, "other": 204},
        exp2_in_loops=24,
        baseline={},
    )


def amd() -> KernelNumbers:
    return numbers(
        AMD,
        "gfx942",
        registers=79,
        scalar_registers=80,
        stage_ms={"ttir": 21.5, "amdgcn": 116.0, "hsaco": 18.0},
        baseline={},
    )


def inspection(**changes: object) -> InspectResult:
    values: dict = {
        "provenance": replace(UNKNOWN, definition="by hand", device="none: compiled, not run"),
        "a": numbers(),
        "b": spilling(),
        "others": (numbers(target="sm_80", registers=160), amd()),
        "choices": CHOICES,
        "targets": TARGETS,
        "trials": (),
        "baseline_triton": "3.8.0",
    }
    return InspectResult(**(values | changes))


def trial(channels: int, microseconds: float, status: str = "", **changes: object) -> TuneTrial:
    values: dict = {
        "device": "NVIDIA H100",
        "kernel": "steps_forward",
        "row": "channels=128,states=16,fp32",
        "channels": channels,
        "steps": 1,
        "num_warps": 1,
        "microseconds": microseconds,
        "status": status,
        "is_chosen": False,
        "measured_at": "2026-11-28 10:11",
    }
    return TuneTrial(**(values | changes))
