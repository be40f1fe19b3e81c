"""Ahead-of-time compilation of the Triton kernels: what a GPU would run, on a machine without one.

`compile_config` gives the machine code of one kernel with its registers, spills, shared memory,
occupancy and instruction counts. `python -m kernels.compiled` prints them for all shipped tiles;
with `--baseline` it fails when a kernel got worse. Nothing here is a time on a GPU.

`exp2_in_loops` is the number of exponential instructions (NVIDIA: MUFU.EX2, AMD: v_exp) in the
machine code that lie in any loop; the loops are found from the jumps of the listing
(`kernels._compiled.assembly`). It is a static count for one thread: a compiler that unrolls a loop
raises it, and so does a kernel that computes an exponential twice.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from kernels._compiled import baseline
from kernels._compiled.cache import Cache, cache_key, default_cache, file_marks
from kernels._compiled.lines import Annotated, annotate, stages
from kernels._compiled.listing import read_answer
from kernels._compiled.pool import run_jobs, warm_up_worker
from kernels._compiled.records import (
    CLASSES,
    CompiledKernel,
    CompileError,
    Config,
    Occupancy,
    config_values,
)
from kernels._compiled.targets import TARGETS, Target
from kernels._triton import configs
from kernels._triton.configs import ConfigChoice
from kernels._triton.trials import Trial, trials

__all__ = [
    "BASELINE",
    "CLASSES",
    "TARGETS",
    "Annotated",
    "CompileError",
    "CompiledKernel",
    "Config",
    "ConfigChoice",
    "Occupancy",
    "Trial",
    "annotate",
    "available_targets",
    "baseline_numbers",
    "cached",
    "choices",
    "compile_config",
    "compile_many",
    "find",
    "shipped_configs",
    "stages",
    "trials",
    "triton_version",
    "warm_up",
]

BASELINE = Path(__file__).with_name("compiled_baseline.json")
BASELINE_TARGETS = ("sm_80", "sm_90", "gfx942")
TIMEOUT_S = 60.0
Result = CompiledKernel | CompileError


def shipped_configs(target: str) -> tuple[Config, ...]:
    """Every kernel with the tiles that it is launched with on `target`."""
    return configs.shipped_configs(_known(target).backend)


def choices(target: str) -> tuple[ConfigChoice, ...]:
    """Everything that can be inspected on `target`: shipped tiles, those that tuning would try, and
    some that the resource model rules out."""
    return configs.config_choices(_known(target).backend)


def find(name: str, target: str) -> Config:
    """A configuration of `choices` by name; CompileError("input") where there is none."""
    listed = {choice.config.name: choice.config for choice in choices(target)}
    if name not in listed:
        near = difflib.get_close_matches(name, listed, 3) or list(listed)[:3]
        raise CompileError(
            "input",
            f"there is no kernel configuration {name[:80]!r} for {target}; near are "
            f"{', '.join(near)}; `python -m workbench kernel --gpu {target} --list` shows all",
        )
    return listed[name]


def cached(config: Config, target: str, cache: Cache | None = None) -> CompiledKernel | None:
    """What an earlier `compile_config` made, None where it would have to compile."""
    cache = default_cache() if cache is None else cache
    return cache.get(cache_key(config, _known(target).name, triton_version() or ""))


def baseline_numbers(
    path: Path = BASELINE,
) -> tuple[str, Mapping[str, Mapping[str, Mapping[str, int]]]]:
    """Triton's version and the numbers of a stored baseline: kernel -> target -> name -> number."""
    stored = baseline.read(path)
    return stored.triton_version, stored.kernels


def warm_up() -> None:
    """Start the compiler's process in the background, so that the next compilation does not wait
    about 2 s for it; nothing where triton is missing."""
    if triton_version() is not None:
        warm_up_worker()


def triton_version() -> str | None:
    """Version of the triton that is installed, without importing it; None where there is none."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    found = re.search(
        r"^__version__\s*=\s*['\"]([^'\"]+)", Path(spec.origin).read_text(encoding="utf-8"), re.M
    )
    return found[1] if found else "unknown"


def available_targets() -> dict[str, str | None]:
    """Target -> None where it can be compiled for, else the reason why not."""
    return {name: _obstacle(target) for name, target in TARGETS.items()}


def compile_config(
    config: Config, target: str, timeout_s: float = TIMEOUT_S, cache: Cache | None = None
) -> CompiledKernel:
    """One kernel for one target, from the cache or compiled in a process of its own.

    A tile that spills is a result; CompileError is what has no listing at all.
    """
    (_, _, result) = next(compile_many([(config, target)], timeout_s, 1, cache))
    if isinstance(result, CompileError):
        raise result
    return result


def compile_many(
    jobs: Sequence[tuple[Config, str]],
    timeout_s: float = TIMEOUT_S,
    n_processes: int | None = None,
    cache: Cache | None = None,
) -> Iterator[tuple[Config, str, Result]]:
    """(configuration, target, result or error): what is cached first, the rest as it finishes.

    `timeout_s` is for each compilation; the first of a process includes its start (about 2 s).
    Closing the iterator ends the processes; else two stay for the next call, for some minutes.
    `n_processes`: one for each core, at most 4.
    """
    cache = default_cache() if cache is None else cache
    version = triton_version()
    obstacles = available_targets()
    waiting: list[tuple[Config, str, str]] = []
    for config, name in jobs:
        try:
            target = _known(name)
            obstacle = obstacles[name]
            if obstacle is not None:
                raise CompileError("triton" if version is None else "backend", obstacle)
            key = cache_key(config, name, version or "")
        except CompileError as error:
            yield config, name, error
            continue
        kernel = cache.get(key)
        if kernel is None:
            waiting.append((config, target.name, key))
        else:
            yield config, name, kernel
    orders = [
        {
            "config": config_values(config),
            "backend": TARGETS[name].backend,
            "arch": TARGETS[name].arch,
            "warp_size": TARGETS[name].warp_size,
            "files": file_marks(config),
        }
        for config, name, _ in waiting
    ]
    n_processes = n_processes or min(4, os.cpu_count() or 1)
    for index, answer in run_jobs(orders, timeout_s, n_processes, keep=True):
        config, name, key = waiting[index]
        result = read_answer(config, TARGETS[name], version or "", answer)
        if isinstance(result, CompiledKernel):
            cache.put(key, result)
        yield config, name, result


def _known(name: str) -> Target:
    if name not in TARGETS:
        message = f"there is no target {name!r}; targets are {', '.join(TARGETS)}"
        raise CompileError("input", message)
    return TARGETS[name]


def _obstacle(target: Target) -> str | None:
    version = triton_version()
    if version is None:
        return (
            "triton is not installed: `pip install triton` (Linux; `triton-windows` on Windows), "
            "no GPU is needed"
        )
    backends = {point.name for point in entry_points(group="triton.backends")}
    needed = "nvidia" if target.backend == "cuda" else "amd"
    if needed not in backends:
        there = ", ".join(sorted(backends)) or "none"
        return (
            f"triton {version} here has no {target.vendor} backend (it has: {there}); "
            "the wheel from PyPI has both"
        )
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """0: fine; 1: a kernel got worse, spills against the baseline or does not compile; 2: usage."""
    options = _parser().parse_args(arguments)
    try:
        stored = baseline.read(options.baseline) if options.baseline else None
        targets = options.target or (
            stored.targets if stored else list(BASELINE_TARGETS if options.write else TARGETS)
        )
        jobs = _chosen(options.config or [""], targets)
    except (OSError, ValueError, CompileError) as error:
        return _complain(str(error))
    kernels: list[CompiledKernel] = []
    errors: list[str] = []
    order = {(config.name, target): i for i, (config, target) in enumerate(jobs)}
    cache = Cache(None) if options.no_cache else None
    for config, _, result in compile_many(jobs, options.timeout, cache=cache):
        if isinstance(result, CompiledKernel):
            kernels.append(result)
        elif result.kind in ("triton", "input", "backend"):
            return _complain(str(result))
        else:
            errors.append(str(result))
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{len(kernels) + len(errors)}/{len(jobs)} {config.name}\033[K\r")
    kernels.sort(key=lambda kernel: order[kernel.config, kernel.target])
    is_whole = not options.config and not options.target
    compared = baseline.compare(stored, kernels, is_whole) if stored else None
    _say(_json(kernels, errors, compared) if options.json else _table(kernels))
    if not options.json:
        for line in [*(compared.notes if compared else ()), *errors]:
            _say(line)
        for line in compared.failures if compared else ():
            _say(f"WORSE: {line}")
        if compared and not compared.failures and not errors:
            _say(f"nothing got worse than {options.baseline}")
    if errors or (compared and compared.failures):
        return 1
    if options.write:
        baseline.write(options.write, kernels)
        _say(f"wrote {options.write}: {len(kernels)} kernels", sys.stderr)
    return 0


def _chosen(parts: Sequence[str], targets: Sequence[str]) -> list[tuple[Config, str]]:
    jobs = [(config, target) for target in targets for config in shipped_configs(target)]
    chosen = [job for job in jobs if any(part in job[0].name for part in parts)]
    if not chosen:
        names = ", ".join(dict.fromkeys(config.name for config, _ in jobs))
        raise ValueError(f"no kernel has {' or '.join(parts)} in its name; there are: {names}")
    return chosen


def _table(kernels: Sequence[CompiledKernel]) -> str:
    width = max([len(kernel.config) for kernel in kernels] + [6])
    lines = [
        f"{'kernel':{width}} {'target':7} {'regs':>4} {'spill':>5} {'shared':>6} {'stack':>5} "
        f"{'blocks':>6} {'occup.':>6} {'instr.':>6} {'loop':>5} {'exp2':>4} {'ms':>5}  limiter"
    ]
    for k in kernels:
        lines.append(
            f"{k.config:{width}} {k.target:7} {k.registers:4} {k.spill_bytes:5} "
            f"{k.shared_bytes:6} {k.stack_bytes:5} {k.occupancy.blocks:6} "
            f"{k.occupancy.fraction:6.0%} {k.n_instructions:6} {k.instructions_in_loops:5} "
            f"{k.exp2_in_loops:4} {1e3 * k.compile_s:5.0f}  {k.occupancy.limiter}"
        )
    if kernels:
        lines.append(f"triton {kernels[0].triton_version}; loop, exp2: instructions inside loops")
    return "\n".join(lines)


def _json(
    kernels: Sequence[CompiledKernel],
    errors: Sequence[str],
    compared: baseline.Comparison | None,
) -> str:
    rows = []
    for kernel in kernels:
        values = kernel.values()
        del values["texts"], values["sources"], values["compiler_log"]
        rows.append(
            values
            | {
                "exp2_in_loops": kernel.exp2_in_loops,
                "instructions_in_loops": kernel.instructions_in_loops,
            }
        )
    report: dict[str, Any] = {"triton": triton_version(), "kernels": rows, "errors": list(errors)}
    if compared is not None:
        report |= {"failures": list(compared.failures), "notes": list(compared.notes)}
    return json.dumps(report, indent=1)


def _say(text: str, stream: Any = None) -> None:
    (stream or sys.stdout).write(text + "\n")


def _complain(text: str) -> int:
    _say(text, sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.compiled",
        description="Registers, spills and machine code of the GPU kernels; no GPU is needed.",
        epilog="In a CI: run `python -m kernels.compiled --write FILE` once and commit FILE; then "
        "`python -m kernels.compiled --baseline FILE` exits with 1 where registers, spills, shared "
        "memory or the exponentials in loops grew, naming each. Pin triton to the version in FILE: "
        "with another one only spills fail.",
    )
    parser.add_argument("--config", action="append", help="part of a name; may be repeated")
    parser.add_argument(
        "--target", action="append", choices=tuple(TARGETS), help="default: all that apply"
    )
    parser.add_argument(
        "--baseline",
        type=Path,
        nargs="?",
        const=BASELINE,
        metavar="FILE",
        help=f"compare and exit 1 when a kernel got worse (default file: {BASELINE.name})",
    )
    parser.add_argument(
        "--write",
        type=Path,
        nargs="?",
        const=BASELINE,
        metavar="FILE",
        help="store these numbers as a baseline",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT_S, help="seconds for one compilation"
    )
    parser.add_argument("--no-cache", action="store_true", help="compile again")
    return parser


if __name__ == "__main__":
    sys.exit(main())
