"""Kernels compiled ahead of time, as the inspector shows them: nothing here runs on a GPU.

Compiling happens in processes of its own and needs neither a GPU nor the device's lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import lru_cache
from typing import Any

from kernels import compiled
from workbench.kernel_results import InspectResult, KernelChoice, KernelNumbers, TuneTrial
from workbench.listings import SHOWN
from workbench.progress import CancelToken, Progress
from workbench.results import UNKNOWN

TIMEOUT_S = 60.0  # of one compilation
AT_ONCE = 2  # compilations
POLL_S = 0.2  # between two looks at the token
COMPILED = "compiled ahead of time in a process of its own; nothing was run, no number is a time"
COMPILERS = ThreadPoolExecutor(AT_ONCE, "compiler")  # of all sessions together

Job = tuple[str, str]  # configuration, target
Result = compiled.CompiledKernel | compiled.CompileError
Outcome = tuple[Job, Result, bool]  # whether it was cached


def targets() -> dict[str, str]:
    """Target -> "" where it can be compiled for, else why not."""
    return {name: why or "" for name, why in compiled.available_targets().items()}


def inspect(
    first: Job, second: Job | None = None, token: CancelToken | None = None
) -> Iterator[Progress | InspectResult]:
    """`first`, then `second`, then the first's configuration on the other targets, as each is
    ready; what does not compile has the compiler's words. The last result is final."""
    others = [(alike(first[0], name), name) for name in compiled.TARGETS if name != first[1]]
    jobs = list(dict.fromkeys([first, *([second] if second else []), *others]))
    version, stored = compiled.baseline_numbers()
    found: dict[Job, KernelNumbers] = {}
    is_cached = True
    for item in _compiled_jobs(jobs, token):
        if isinstance(item, Progress):
            yield item
            continue
        job, result, was_cached = item
        is_cached = is_cached and was_cached
        found[job] = _numbers(job, result, was_cached, stored)
        if first not in found:
            continue
        yield InspectResult(
            provenance=replace(
                UNKNOWN,
                definition=COMPILED,
                device="none: compiled, not run",
                backend="triton",
                versions={"triton": compiled.triton_version() or "not installed"},
            ),
            a=found[first],
            b=found.get(second) if second else None,
            others=tuple(found[job] for job in others if job in found),
            choices=choices(first[1]),
            targets=targets(),
            trials=_trials(first[0]),
            baseline_triton=version,
            is_final=len(found) == len(jobs),
        )
    if is_cached:  # the reader's next choice may not be
        compiled.warm_up()


def _compiled_jobs(jobs: list[Job], token: CancelToken | None) -> Iterator[Progress | Outcome]:
    """Each job's outcome: what is cached at once, the rest in order, a few at a time.

    A compilation that runs when the reader goes away runs to its end, and is cached.
    """
    waiting: list[Job] = []
    for job in jobs:
        try:
            kernel = compiled.cached(compiled.find(*job), job[1])
        except compiled.CompileError as error:
            yield job, error, False
            continue
        if kernel is None:
            waiting.append(job)
        else:
            yield job, kernel, True
    running = {COMPILERS.submit(_compile, job): job for job in waiting}
    try:
        while running:
            targets = ", ".join(target for _, target in running.values())
            yield Progress(len(waiting) - len(running), len(waiting), f"compiling for {targets}")
            done: set[Future[Result]] = set()
            while not done:
                if token:
                    token.check()
                done, _ = wait(running, POLL_S, FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result(), False
    finally:
        for future in running:
            future.cancel()


def _compile(job: Job) -> Result:
    try:
        return compiled.compile_config(compiled.find(*job), job[1], TIMEOUT_S)
    except compiled.CompileError as error:
        return error


def _numbers(
    job: Job,
    result: Result,
    is_cached: bool,
    stored: Mapping[str, Mapping[str, Mapping[str, int]]],
) -> KernelNumbers:
    config, target = job
    shared: dict[str, Any] = {
        "config": config,
        "target": target,
        "product": compiled.TARGETS[target].example,
        "is_cached": is_cached,
        "baseline": dict(stored.get(config, {}).get(target, {})),
    }
    if isinstance(result, compiled.CompileError):
        return KernelNumbers(status=str(result), error_kind=result.kind, **shared)
    kernel = result
    return KernelNumbers(
        status="",
        error_kind="",
        registers=kernel.registers,
        scalar_registers=kernel.scalar_registers,
        spill_bytes=kernel.spill_bytes,
        shared_bytes=kernel.shared_bytes,
        stack_bytes=kernel.stack_bytes,
        num_warps=kernel.num_warps,
        blocks=kernel.occupancy.blocks,
        warps=kernel.occupancy.warps,
        occupancy=kernel.occupancy.fraction,
        limiter=kernel.occupancy.limiter,
        instructions=dict(kernel.instructions),
        loop_instructions=dict(kernel.loop_instructions),
        exp2_in_loops=kernel.exp2_in_loops,
        stage_ms=dict(kernel.stage_ms),
        compile_s=kernel.compile_s,
        binary_bytes=kernel.binary_bytes,
        triton_version=kernel.triton_version,
        key=SHOWN.keep(kernel),
        stages=compiled.stages(kernel),
        **shared,
    )


@lru_cache(maxsize=8)
def choices(target: str) -> tuple[KernelChoice, ...]:
    """Everything that can be inspected on a target, shipped tiles first."""
    return tuple(
        KernelChoice(
            name=choice.config.name,
            kernel=choice.kernel,
            layout=choice.layout,
            dtype=choice.dtype,
            channels=choice.channels,
            steps=choice.steps,
            num_warps=choice.num_warps,
            origin=choice.origin,
            elements=choice.elements,
        )
        for choice in compiled.choices(target)
    )


def alike(config: str, target: str) -> str:
    """The same configuration for another target, else its shipped tile of the same kernel, layout
    and type; a name of no choice as it is."""
    names = [choice.name for choice in choices(target)]
    kind = config.rpartition("-")[0]
    if config in names:
        return config
    return next((name for name in names if name.rpartition("-")[0] == kind), config)


def _trials(config: str) -> tuple[TuneTrial, ...]:
    """Of the kernel of a configuration, as a GPU ran them."""
    kernel = config.partition("-")[0]
    return tuple(
        TuneTrial(
            device=trial.device,
            kernel=trial.kernel,
            row=trial.row,
            channels=trial.tile.channels,
            steps=trial.tile.steps,
            num_warps=trial.tile.num_warps,
            microseconds=trial.microseconds,
            status=trial.status,
            is_chosen=trial.is_chosen,
            measured_at=trial.measured_at,
        )
        for trial in compiled.trials()
        if trial.kernel == kernel
    )
