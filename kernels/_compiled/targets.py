"""The GPUs that kernels are compiled for, and how many blocks of a kernel each can hold."""

from __future__ import annotations

from dataclasses import dataclass

from kernels._compiled.records import Occupancy


@dataclass(frozen=True)
class Target:
    """One architecture with what its multiprocessor holds (SM on NVIDIA, compute unit on AMD)."""

    name: str
    example: str  # a product that people know
    backend: str  # triton's name of the vendor: "cuda" or "hip"
    arch: int | str
    warp_size: int
    registers: int  # 32-bit vector registers of one scheduler (a quarter of the multiprocessor)
    register_unit: int  # registers of one thread are rounded up to this
    warps: int  # of the whole multiprocessor
    blocks: int
    shared_bytes: int
    shared_bytes_per_block: int
    shared_reserved: int  # taken by the system for each block
    shared_unit: int

    @property
    def vendor(self) -> str:
        return "NVIDIA" if self.backend == "cuda" else "AMD"


def _nvidia(name: str, example: str, arch: int, shared_kib: int) -> Target:
    """CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""
    return Target(
        name=name,
        example=example,
        backend="cuda",
        arch=arch,
        warp_size=32,
        registers=16 * 1024,
        register_unit=8,
        warps=64,
        blocks=32,
        shared_bytes=shared_kib * 1024,
        shared_bytes_per_block=(shared_kib - 1) * 1024,
        shared_reserved=1024,
        shared_unit=128,
    )


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        _nvidia("sm_80", "A100", 80, 164),
        _nvidia("sm_90", "H100", 90, 228),
        _nvidia("sm_100", "B200", 100, 228),
        # AMD Instinct MI300 ISA guide and LLVM's AMDGPU target: 512 vector registers for each lane
        # of a SIMD, at most 8 waves on it, 64 KiB of local memory for the compute unit.
        Target(
            name="gfx942",
            example="MI300X",
            backend="hip",
            arch="gfx942",
            warp_size=64,
            registers=512 * 64,
            register_unit=8,
            warps=32,
            blocks=32,
            shared_bytes=64 * 1024,
            shared_bytes_per_block=64 * 1024,
            shared_reserved=0,
            shared_unit=128,
        ),
    )
}
SCHEDULERS = 4  # in a multiprocessor of every target above
AMD_BLOCKS_WITH_BARRIER = 16  # blocks of more than one wave each hold one of 16 barriers


def occupancy(target: Target, registers: int, shared_bytes: int, num_warps: int) -> Occupancy:
    """Blocks that fit at a time: the least of what registers, shared memory, warps and block slots
    allow, by the rules of NVIDIA's occupancy calculator (a warp lives on one scheduler)."""
    per_thread = _rounded_up(max(registers, 1), target.register_unit)
    warps_by_registers = SCHEDULERS * (target.registers // (per_thread * target.warp_size))
    blocks = target.blocks
    if target.backend == "hip" and num_warps > 1:
        blocks = AMD_BLOCKS_WITH_BARRIER
    warp = "wave" if target.backend == "hip" else "warp"
    limits = {
        f"{warp}s ({num_warps} per block, {target.warps} fit)": target.warps // num_warps,
        f"blocks ({blocks} fit)": blocks,
        f"registers ({registers} per thread)": warps_by_registers // num_warps,
    }
    if shared_bytes:
        taken = _rounded_up(shared_bytes + target.shared_reserved, target.shared_unit)
        fits = shared_bytes <= target.shared_bytes_per_block
        limits[f"shared memory ({shared_bytes / 1024:.4g} KiB per block)"] = (
            target.shared_bytes // taken if fits else 0
        )
    limiter = min(limits, key=limits.__getitem__)
    count = limits[limiter]
    if count == 0:
        limiter += ": more than there is, the kernel cannot be launched"
    warps = count * num_warps
    return Occupancy(count, warps, warps / target.warps, limiter)


def _rounded_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
