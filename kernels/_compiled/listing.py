"""From the worker's answer to the record: resources from the compiler's own words, then counts."""

from __future__ import annotations

import re
from typing import Any

from kernels._compiled import assembly
from kernels._compiled.cache import sources
from kernels._compiled.records import CompiledKernel, CompileError, Config
from kernels._compiled.targets import Target, occupancy


def read_answer(
    config: Config, target: Target, version: str, answer: dict[str, Any] | CompileError
) -> CompiledKernel | CompileError:
    """Count and parse what the worker sent."""
    where = f"{config.name} on {target.name}"
    if isinstance(answer, CompileError):
        return CompileError(answer.kind, f"{where}: {answer}")
    if "error" in answer:
        return CompileError("compiler", f"{where}: {answer['error']}")
    texts = answer["texts"]
    try:
        if target.backend == "cuda":
            counts = assembly.count_sass(texts["sass"])
            used = _ptxas_numbers(answer["log"])
        else:
            counts = assembly.count_amdgcn(texts["amdgcn"])
            used = _amdgcn_numbers(texts["amdgcn"])
    except LookupError as error:
        return CompileError("compiler", f"{where}: this triton's listing has no {error}")
    return CompiledKernel(
        config=config.name,
        target=target.name,
        shared_bytes=answer["shared_bytes"],
        num_warps=answer["num_warps"],
        occupancy=occupancy(target, used["registers"], answer["shared_bytes"], answer["num_warps"]),
        instructions=counts.instructions,
        loop_instructions=counts.in_loops,
        stage_ms=answer["stage_ms"],
        compile_s=answer["compile_s"],
        binary_bytes=answer["binary_bytes"],
        triton_version=version,
        compiler_log=answer["log"],
        texts=texts,
        sources=sources(config),
        **used,
    )


def _ptxas_numbers(log: str) -> dict[str, int]:
    """From the log of `ptxas -v`, of the very run that made the binary."""
    return {
        "registers": max(_numbers(r"Used (\d+) registers", log)),
        "scalar_registers": 0,
        # Functions that were not inlined have lines of their own.
        "spill_bytes": sum(_numbers(r"(\d+) bytes spill (?:stores|loads)", log)),
        "stack_bytes": max(_numbers(r"(\d+) bytes stack frame", log)),
    }


def _amdgcn_numbers(text: str) -> dict[str, int]:
    """From LLVM's comments behind the kernel."""
    scratch = max(_numbers(r"; ScratchSize: (\d+)", text))
    return {
        "registers": max(_numbers(r"; TotalNumVgprs: (\d+)", text)),
        "scalar_registers": max(_numbers(r"; TotalNumSgprs: (\d+)", text)),
        "spill_bytes": scratch,
        "stack_bytes": scratch,
    }


def _numbers(pattern: str, text: str) -> list[int]:
    found = [int(number) for number in re.findall(pattern, text)]
    if not found:
        raise LookupError(f"line with {pattern!r}")
    return found
