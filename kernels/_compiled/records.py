"""What a compilation is asked for, what it gives, and how it fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

# Classes of machine instructions, in the order of tables. "local" is spill traffic; NOPs are not
# counted; "matrix" is the tensor core's.
CLASSES = (
    "load",
    "store",
    "local",
    "shared",
    "atomic",
    "fma",
    "matrix",
    "exp2",
    "special",
    "shuffle",
    "barrier",
    "branch",
    "other",
)
ErrorKind = Literal["input", "triton", "backend", "compiler", "timeout"]


class Config(Protocol):
    """One kernel with its tile: `kernels._triton.configs.KernelConfig`, or any object like it."""

    @property
    def name(self) -> str: ...
    @property
    def module(self) -> str:
        """Import name of the module that holds the kernel."""

    @property
    def function(self) -> str: ...
    @property
    def signature(self) -> Mapping[str, str]:
        """Argument -> triton's type, such as `*bf16` or `i32`."""

    @property
    def constexprs(self) -> Mapping[str, object]: ...
    @property
    def num_warps(self) -> int: ...
    @property
    def num_stages(self) -> int: ...
    @property
    def divisible_by_16(self) -> tuple[str, ...]: ...


def config_values(config: Config) -> dict[str, Any]:
    """The configuration as plain values; everything here decides what is compiled."""
    return {
        "name": config.name,
        "module": config.module,
        "function": config.function,
        "signature": dict(config.signature),
        "constexprs": dict(config.constexprs),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "divisible_by_16": list(config.divisible_by_16),
    }


class CompileError(RuntimeError):
    """A kernel has no listing. The text is the compiler's own words where it said something.

    `kind`: "input" (unknown target or configuration), "triton" (not installed), "backend" (this
    triton cannot compile for that vendor), "compiler" (it refused or crashed) or "timeout".
    """

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Occupancy:
    """How much of one multiprocessor (NVIDIA's SM, AMD's compute unit) the kernel can fill."""

    blocks: int  # thread blocks at a time; 0: the kernel cannot be launched
    warps: int  # warps (AMD: waves) at a time
    fraction: float  # of the warps that the multiprocessor can hold
    limiter: str  # in words


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel compiled for one target; nothing here was run, so nothing here is a speed."""

    config: str
    target: str
    registers: int  # per thread; AMD: vector registers, accumulators included
    scalar_registers: int  # AMD, per wave; 0 on NVIDIA
    spill_bytes: int  # NVIDIA: stored + loaded, as ptxas counts them; AMD: scratch per thread
    shared_bytes: int  # per block
    stack_bytes: int  # per thread
    num_warps: int
    occupancy: Occupancy
    instructions: Mapping[str, int]  # by class, see CLASSES
    loop_instructions: Mapping[str, int]  # those of them that lie in a loop
    stage_ms: Mapping[str, float]  # lowering stage -> time, in order
    compile_s: float
    binary_bytes: int
    triton_version: str
    compiler_log: str = field(repr=False)
    # "source" is the kernel's whole module, so that line numbers of the other stages point into
    # it; then ttir, ttgir, llir and ptx + sass or amdgcn.
    texts: Mapping[str, str] = field(repr=False)
    # The module and what it imports from its own package: path from the project's root -> text.
    sources: Mapping[str, str] = field(repr=False)

    @property
    def exp2_in_loops(self) -> int:
        return self.loop_instructions["exp2"]

    @property
    def instructions_in_loops(self) -> int:
        return sum(self.loop_instructions.values())

    @property
    def n_instructions(self) -> int:
        return sum(self.instructions.values())

    def values(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> CompiledKernel:
        """The inverse of `values`; TypeError or KeyError where something is missing."""
        return cls(**{**values, "occupancy": Occupancy(**values["occupancy"])})
