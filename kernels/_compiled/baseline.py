"""The regression guard: what each kernel took when it was last accepted, and what it takes now."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels._compiled.records import CompiledKernel

# What must not grow -> how it is called in messages.
GUARDED = {
    "registers": "registers per thread",
    "spill_bytes": "spill bytes",
    "shared_bytes": "shared memory bytes",
    "exp2_in_loops": "exp2 instructions in loops",
}


@dataclass(frozen=True)
class Baseline:
    triton_version: str
    kernels: Mapping[str, Mapping[str, Mapping[str, int]]]  # kernel -> target -> GUARDED -> number

    @property
    def targets(self) -> list[str]:
        return list(dict.fromkeys(target for row in self.kernels.values() for target in row))


@dataclass(frozen=True)
class Comparison:
    failures: tuple[str, ...]  # what makes the command fail
    notes: tuple[str, ...]  # what it only says


def compare(baseline: Baseline, kernels: Sequence[CompiledKernel], is_whole: bool) -> Comparison:
    """Strict with the baseline's own triton; with another one only spills fail.

    Another compiler may well use other registers, which says nothing about our source; a spill is
    wrong whoever compiled it. `is_whole`: all kernels were compiled, so one that is missing is
    named.
    """
    failures: list[str] = []
    notes: list[str] = []
    others = {k.triton_version for k in kernels} - {baseline.triton_version}
    for version in sorted(others):
        notes.append(
            f"this is triton {version}, the baseline is of {baseline.triton_version}: only spills "
            "fail, other growth is reported"
        )
    for kernel in kernels:
        stored = baseline.kernels.get(kernel.config, {}).get(kernel.target)
        where = f"{kernel.config} on {kernel.target}"
        if stored is None:
            if kernel.spill_bytes:
                failures.append(f"{where}: {kernel.spill_bytes} spill bytes, not in the baseline")
            else:
                notes.append(f"{where}: not in the baseline; --write stores it")
            continue
        for name, words in GUARDED.items():
            before, now = stored[name], getattr(kernel, name)
            sentence = f"{where}: {words} {before} -> {now}"
            is_strict = kernel.triton_version == baseline.triton_version or (
                name == "spill_bytes" and now > 0
            )
            if now > before and is_strict:
                failures.append(sentence)
            elif now != before:
                notes.append(sentence)
    if is_whole:
        present = {(kernel.config, kernel.target) for kernel in kernels}
        for config, targets in baseline.kernels.items():
            for target in targets:
                if (config, target) not in present:
                    notes.append(f"{config} on {target}: in the baseline, no longer compiled")
    return Comparison(tuple(failures), tuple(notes))


def write(path: Path, kernels: Sequence[CompiledKernel]) -> None:
    """One line for each kernel and target, so that a change reads well in a diff."""
    if not kernels:
        raise ValueError("nothing was compiled, so there is nothing to store")
    rows: dict[str, dict[str, str]] = {}
    for kernel in kernels:
        numbers = {name: getattr(kernel, name) for name in GUARDED}
        rows.setdefault(kernel.config, {})[kernel.target] = json.dumps(numbers)
    blocks = [
        f"  {json.dumps(config)}: {{\n"
        + ",\n".join(f"   {json.dumps(target)}: {numbers}" for target, numbers in row.items())
        + "\n  }"
        for config, row in rows.items()
    ]
    version = json.dumps(kernels[0].triton_version)
    text = f'{{\n "triton": {version},\n "kernels": {{\n' + ",\n".join(blocks) + "\n }\n}\n"
    path.write_text(text, encoding="utf-8")


def read(path: Path) -> Baseline:
    """ValueError in words where the file is not a baseline; OSError where it cannot be read."""
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        kernels = {
            config: {
                target: {name: int(numbers[name]) for name in GUARDED}
                for target, numbers in row.items()
            }
            for config, row in values["kernels"].items()
        }
        return Baseline(str(values["triton"]), kernels)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a baseline ({type(error).__name__}: {error}); "
            "`python -m kernels.compiled --write FILE` makes one"
        ) from error
