"""Published rates of GPUs: what the floors of `kernels.cost` divide by. Nothing here is measured.

Boost clocks: a real run clocks lower under load, so a floor is a floor.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Peak rates of one product."""

    name: str
    target: str | None  # what `kernels.compiled` calls its architecture; None: not compiled for
    memory_bytes_per_s: float
    multiprocessors: int  # SMs; AMD: compute units
    clock_hz: float
    fma_per_clock: int  # float32 multiply-adds (or additions, or products) of one multiprocessor
    exp_per_clock: int  # exponentials of one multiprocessor, from its special-function unit
    source: str

    @property
    def fma_per_s(self) -> float:
        return self.multiprocessors * self.fma_per_clock * self.clock_hz

    @property
    def exp_per_s(self) -> float:
        return self.multiprocessors * self.exp_per_clock * self.clock_hz


# Results for each clock and multiprocessor: CUDA C++ Programming Guide, table "Throughput of Native
# Arithmetic Instructions" (float32 add, multiply, multiply-add: 64 for compute capability 8.0, 128
# for 8.6, 8.9 and 9.0; exp2 on the special-function unit: 16 for all four).
# Left out: a B200, of which NVIDIA's own pages give 7.7 and 8 TB/s, 75 and 80 TFLOP/s.
_CUDA = "CUDA C++ Programming Guide, arithmetic throughput"
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        # 67 TFLOP/s float32 = 132 SMs * 128 * 2 * 1.98 GHz.
        Gpu(
            "H100 SXM",
            "sm_90",
            3.35e12,
            132,
            1.98e9,
            128,
            16,
            f"NVIDIA H100 datasheet (SXM5, 80 GB HBM3); {_CUDA} 9.0",
        ),
        # The H100's chip with faster memory: 67 TFLOP/s float32.
        Gpu(
            "H200 SXM",
            "sm_90",
            4.8e12,
            132,
            1.98e9,
            128,
            16,
            f"NVIDIA H200 datasheet (SXM, 141 GB HBM3e); {_CUDA} 9.0",
        ),
        # 19.5 TFLOP/s float32 = 108 SMs * 64 * 2 * 1.41 GHz.
        Gpu(
            "A100 80GB",
            "sm_80",
            2.039e12,
            108,
            1.41e9,
            64,
            16,
            f"NVIDIA A100 datasheet (SXM4, 80 GB HBM2e); {_CUDA} 8.0",
        ),
        # 91.6 TFLOP/s float32 = 142 SMs * 128 * 2 * 2.52 GHz.
        Gpu(
            "L40S",
            None,
            0.864e12,
            142,
            2.52e9,
            128,
            16,
            f"NVIDIA L40S datasheet (48 GB GDDR6, 18,176 CUDA cores); {_CUDA} 8.9",
        ),
        # 82.6 TFLOP/s float32 = 128 SMs * 128 * 2 * 2.52 GHz.
        Gpu(
            "RTX 4090",
            None,
            1.008e12,
            128,
            2.52e9,
            128,
            16,
            f"NVIDIA Ada GPU architecture whitepaper (24 GB GDDR6X); {_CUDA} 8.9",
        ),
        # 35.6 TFLOP/s float32 = 82 SMs * 128 * 2 * 1.695 GHz.
        Gpu(
            "RTX 3090",
            None,
            0.936e12,
            82,
            1.695e9,
            128,
            16,
            f"NVIDIA Ampere GA102 GPU architecture whitepaper (24 GB GDDR6X); {_CUDA} 8.6",
        ),
        # 163.4 TFLOP/s float32 = 304 CUs * 128 * 2 * 2.1 GHz, with packed instructions only. A
        # transcendental takes four times as long as a plain instruction: 4 SIMDs of 16 lanes give
        # 16 for each clock. AMD publishes the rate in its compiler only.
        Gpu(
            "MI300X",
            "gfx942",
            5.3e12,
            304,
            2.1e9,
            128,
            16,
            "AMD Instinct MI300X data sheet and CDNA 3 white paper; four 16-wide SIMDs as in the "
            "ROCm Compute Profiler documentation (pipeline descriptions, VALU); transcendentals at "
            "a quarter of the rate as in LLVM's scheduling model (SISchedule.td, WriteTrans32: "
            "https://reviews.llvm.org/D81011), of which gfx942 overrides other instructions only",
        ),
    )
}
