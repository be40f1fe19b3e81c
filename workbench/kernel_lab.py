"""The kernel lab: the roofline, what a token costs, and the compiled kernels of the scans.

The page, the command line and the API call this facade. Compiling needs neither a GPU nor the
device's lock.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kernels import ScanSpec, compiled
from models.registry import model_spec
from workbench.analyses import cost_grid, roofline, token_cost
from workbench.cache import run_key
from workbench.choices import check_choice
from workbench.errors import BadInputError, NotAvailableError
from workbench.kernel_results import (
    CostGrid,
    InspectResult,
    KernelChoice,
    KernelNumbers,
    Listing,
    Rates,
    RooflineResult,
    TokenCost,
    TuneTrial,
    WhatIfResult,
)
from workbench.listings import SHOWN
from workbench.progress import CancelToken, Progress
from workbench.results import UNKNOWN
from workbench.view import (
    HERE,
    PROF_DTYPES,
    PROF_PASSES,
    WHAT_BATCHES,
    WHAT_SIZES,
    WHAT_STEPS,
    View,
)

if TYPE_CHECKING:
    from workbench.runtime import Workbench

TIMEOUT_S = 60.0  # of one compilation
AT_ONCE = 2  # compilations
POLL_S = 0.2  # between two looks at the token
FULL_SCAN = "ss2d"
COMPILED = "compiled ahead of time in a process of its own; nothing was run, no number is a time"
JOBS = threading.Semaphore(AT_ONCE)  # of all sessions together


class KernelLab:
    """Facade over the kernels' analyses; the workbench lends the photo's size and the device."""

    def __init__(self, workbench: Workbench) -> None:
        self._wb = workbench
        self._machine: Rates | None = None  # this machine's rates, once they were measured

    def resolve(self, view: View) -> View:
        """The view with every choice of the lab checked."""
        target = _check_target(view.kern_target)
        _check_config(view.kern_a, target)
        if view.kern_target_b:
            _check_target(view.kern_target_b)
        if view.kern_b:
            _check_config(view.kern_b, view.kern_target_b or target)
        devices = [rates.device for rates in self.devices() if rates.kind == "published"]
        check_choice("device", view.what_device, [HERE, *devices])
        check_choice("dtype", view.what_dtype, list(PROF_DTYPES))
        check_choice("passes", view.what_passes, list(PROF_PASSES))
        for name, value, allowed in (
            ("size", view.what_size, WHAT_SIZES),
            ("batch", view.what_batch, WHAT_BATCHES),
            ("step", view.what_step, WHAT_STEPS),
        ):
            if value not in allowed:
                raise BadInputError(
                    f"The cost model's {name} is {value}. Choose one of: "
                    f"{', '.join(map(str, allowed))}."
                )
        return view

    # The cost model

    def pair(self, view: View) -> tuple[str, str]:
        """The two schemes of the roofline: ES2D with the slider's step, and scheme B where a
        network can run it, else the full scan."""
        b = ScanSpec.parse(view.scan_b)
        return str(ScanSpec("es2d", {"step": view.what_step})), (
            FULL_SCAN if b.scheme.needs else str(b)
        )

    def setting(self, view: View) -> dict[str, str | int]:
        """Where the sliders stand; the device as the grid names it."""
        device = self._machine.device if self._machine and view.what_device == HERE else ""
        return {
            "device": device or view.what_device,
            "size": view.what_size,
            "batch": view.what_batch,
            "step": view.what_step,
            "dtype": view.what_dtype,
            "passes": view.what_passes,
        }

    def devices(self) -> tuple[Rates, ...]:
        """Every device of the cost model; this machine once it was measured."""
        return (*cost_grid.published_rates(), *filter(None, [self._machine]))

    def targets(self) -> dict[str, str]:
        """Target -> "" where it can be compiled for, else why not."""
        return {name: why or "" for name, why in compiled.available_targets().items()}

    def device_key(self, device: str) -> str:
        """`View.what_device` of a device as the grid names it."""
        return HERE if self._machine and device == self._machine.device else device

    def grid(self, view: View) -> CostGrid:
        """Costs of every scheme that a network can run, for square inputs of `WHAT_SIZES`."""
        view = self._wb.resolve(view)
        listed = [choice.name for choice in self._wb.scans() if not choice.why_not]
        schemes = tuple(dict.fromkeys([*listed, *self.pair(view)]))
        provenance = replace(
            UNKNOWN, model=view.model, definition=cost_grid.DEFINITION, device="model"
        )
        return cost_grid.cost_grid(view.model, schemes, WHAT_SIZES, provenance, self._machine)

    def what_if(self, view: View) -> WhatIfResult:
        """The two schemes at the view's setting; on this machine its rates are measured first."""
        view = self._wb.resolve(view)
        if view.what_device == HERE:
            self._measure_rates()
        return cost_grid.what_if(
            self.grid(view),
            self._device_name(view),
            view.what_size,
            view.what_batch,
            view.what_dtype,
            view.what_passes,
            *self.pair(view),
        )

    def roofline(
        self, view: View, token: CancelToken | None = None
    ) -> Iterator[Progress | RooflineResult]:
        """The grid at once; then with this machine's rates and its scans, measured."""
        view = self._wb.resolve(view)
        grid = self.grid(view)
        size, batch, dtype = self._measured_setting(view)
        key = run_key(
            "roofline",
            model=view.model,
            pair=self.pair(view),
            setting=(size, batch, dtype, view.what_passes),
        )
        if (kept := self._wb.results.get(key)) is not None:
            yield kept
            return
        run = roofline.roofline(
            grid,
            size=size,
            batch=batch,
            dtype=dtype,
            passes=view.what_passes,
            device=self._wb.device,
            backend=self._wb.backend,
            scans=self.pair(view),
            token=token,
        )
        for item in self._wb.stepwise(run, token):
            if isinstance(item, RooflineResult):
                here = [rates for rates in item.grid.devices if rates.kind == "measured"]
                self._machine = here[-1] if here else self._machine
                if item.is_final:
                    item = self._wb.results.keep(key, item)
            yield item

    # A token

    def token(self, view: View, which: str = "a") -> TokenCost:
        """What the token in focus costs in the kernel of a GPU; NotAvailableError in a stage
        without a scan."""
        view = self._wb.resolve(view)
        scan = {"a": view.scan_a, "b": view.scan_b, "c": view.scan_c or view.scan_b}[which]
        rows, columns, _ = self._wb.stage_shape(view, view.stage)
        if not self._wb.scan(view, which).has_scan:
            raise NotAvailableError(
                f"Stage {view.stage} has no scan: its blocks are convolutions. Choose stage 1 or 2."
            )
        shape = cost_grid.scan_shape(model_spec(view.model), view.stage)
        gpu = self._gpu(view)
        cost = token_cost.token_cost(
            scan,
            rows,
            columns,
            view.stage,
            view.y or 0,
            view.x or 0,
            channels=shape.channels,
            rank=shape.rank,
            states=shape.states,
            batch=view.what_batch,
            dtype=view.what_dtype,
            gpu=gpu,
            provenance=self._wb.provenance(view, which),
        )
        try:
            kernel = compiled.cached(compiled.find(cost.kernel, cost.target), cost.target)
        except compiled.CompileError:
            return cost
        return token_cost.with_instructions(cost, kernel) if kernel else cost

    def tokens(self, view: View) -> dict[str, TokenCost]:
        """The costs under each of the view's schemes, by slot: of those that a network here can
        run, in a stage with a scan."""
        found = {}
        for slot in view.scans:
            with contextlib.suppress(NotAvailableError, BadInputError):
                found[slot] = self.token(view, slot)
        return found

    # Compiled kernels

    def alike(self, config: str, target: str) -> str:
        """The same configuration for another target, else its shipped tile of the same kernel,
        layout and type; a name of no choice as it is."""
        return _alike(config, _check_target(target))

    def choices(self, target: str) -> tuple[KernelChoice, ...]:
        """Everything that can be inspected on a target, shipped tiles first."""
        return _choices(_check_target(target))

    def inspect(
        self, view: View, token: CancelToken | None = None
    ) -> Iterator[Progress | InspectResult]:
        """Configuration A, then B, then A on the other targets, as each is ready."""
        view = self.resolve(view)
        first = (view.kern_a, view.kern_target)
        second = (view.kern_b, view.kern_target_b or view.kern_target) if view.kern_b else None
        others = [(_alike(first[0], name), name) for name in compiled.TARGETS if name != first[1]]
        jobs = list(dict.fromkeys([first, *([second] if second else []), *others]))
        version, stored = compiled.baseline_numbers()
        found: dict[tuple[str, str], KernelNumbers] = {}
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
                choices=self.choices(view.kern_target),
                targets=self.targets(),
                trials=_trials(view.kern_a),
                baseline_triton=version,
                is_final=len(found) == len(jobs),
            )
        if is_cached:  # the reader's next choice may not be
            compiled.warm_up()

    def listing(self, numbers: KernelNumbers, stage: str) -> Listing:
        """One lowering stage of a compiled kernel, see `KernelNumbers.stages`."""
        if not numbers.key:
            raise NotAvailableError(f"{numbers.config} has no listings: {numbers.status}")
        return SHOWN.listing(numbers.key, stage)

    # Inside

    def _measured_setting(self, view: View) -> tuple[int, int, str]:
        """Size, batch and type that are measured here: the view's on this machine, else one image
        in float32."""
        if view.what_device == HERE:
            return view.what_size, view.what_batch, view.what_dtype
        return view.what_size, 1, "float32"

    def _device_name(self, view: View) -> str:
        """The device of the what-if as the grid lists it."""
        if view.what_device != HERE:
            return view.what_device
        assert self._machine is not None
        return self._machine.device

    def _measure_rates(self) -> None:
        self._machine = self._wb.once(
            "rates of this machine", lambda: roofline.machine_rates(self._wb.device)
        )

    def _gpu(self, view: View) -> str:
        """The GPU whose launch is told: the view's, or the default one for this machine's."""
        return View().what_device if view.what_device == HERE else view.what_device


Job = tuple[str, str]  # configuration, target
Outcome = tuple[Job, compiled.CompiledKernel | compiled.CompileError, bool]  # whether it was cached


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
    done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    pending: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in waiting:
        pending.put(job)
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            try:
                job = pending.get_nowait()
            except queue.Empty:
                return
            found: compiled.CompiledKernel | compiled.CompileError
            with JOBS:
                try:
                    found = compiled.compile_config(compiled.find(*job), job[1], TIMEOUT_S)
                except compiled.CompileError as error:
                    found = error
            done.put((job, found, False))

    for _ in range(min(AT_ONCE, len(waiting))):
        threading.Thread(target=work, daemon=True).start()
    left = dict.fromkeys(waiting)
    try:
        while left:
            targets = ", ".join(target for _, target in left)
            yield Progress(len(waiting) - len(left), len(waiting), f"compiling for {targets}")
            outcome = None
            while outcome is None:
                if token:
                    token.check()
                with contextlib.suppress(queue.Empty):
                    outcome = done.get(timeout=POLL_S)
            del left[outcome[0]]
            yield outcome
    finally:
        is_over.set()


def _numbers(
    job: Job,
    result: compiled.CompiledKernel | compiled.CompileError,
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
def _choices(target: str) -> tuple[KernelChoice, ...]:
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


def _alike(config: str, target: str) -> str:
    """See `KernelLab.alike`; the tile is the last part of a name."""
    names = [choice.name for choice in _choices(target)]
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


def _check_target(target: str) -> str:
    check_choice("GPU target", target, list(compiled.TARGETS))
    return target


def _check_config(config: str, target: str) -> None:
    try:
        compiled.find(config, target)
    except compiled.CompileError as error:
        raise BadInputError(str(error)) from error
