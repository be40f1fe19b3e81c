"""The kernel lab: the roofline, what a token costs, and the compiled kernels of the scans.

The page, the command line and the API call this facade. Compiling needs neither a GPU nor the
device's lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kernels import ScanSpec, compiled
from models.registry import model_spec
from workbench.analyses import cost_grid, inspection, roofline, token_cost
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

FULL_SCAN = "ss2d"


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
        """Where the sliders stand, see `workbench.floors`."""
        return {
            "device": view.what_device,
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
        return inspection.targets()

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
            view.what_device,
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
        setting, pair = self._measured_setting(view), self.pair(view)
        key = run_key("roofline", model=view.model, pair=pair, setting=setting)
        if (kept := self._wb.results.get(key)) is not None:
            yield kept
            return
        run = roofline.roofline(
            grid,
            device=self._wb.device,
            backend=self._wb.backend,
            scans=pair,
            token=token,
            **setting,
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
            kernel = SHOWN.kernel(f"{cost.target}/{cost.kernel}")
        except BadInputError:  # not compiled here yet
            return cost
        return token_cost.with_instructions(cost, kernel)

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
        return inspection.alike(config, _check_target(target))

    def choices(self, target: str) -> tuple[KernelChoice, ...]:
        """Everything that can be inspected on a target, shipped tiles first."""
        return inspection.choices(_check_target(target))

    def inspect(
        self, view: View, token: CancelToken | None = None
    ) -> Iterator[Progress | InspectResult]:
        """Configuration A, then B, then A on the other targets, as each is ready."""
        view = self.resolve(view)
        second = (view.kern_b, view.kern_target_b or view.kern_target) if view.kern_b else None
        yield from inspection.inspect((view.kern_a, view.kern_target), second, token)

    def listing(self, numbers: KernelNumbers, stage: str) -> Listing:
        """One lowering stage of a compiled kernel, see `KernelNumbers.stages`."""
        if not numbers.key:
            raise NotAvailableError(f"{numbers.config} has no listings: {numbers.status}")
        return SHOWN.listing(numbers.key, stage)

    # Inside

    def _measured_setting(self, view: View) -> dict[str, Any]:
        """What is measured here: the view's setting on this machine; beside another device's floors
        one image at the usual size, once, so that sliders need not wait for it."""
        plain = View()
        if view.what_device != HERE:
            return {"size": plain.what_size, "batch": 1, "dtype": "float32", "passes": "forward"}
        return {
            "size": view.what_size,
            "batch": view.what_batch,
            "dtype": view.what_dtype,
            "passes": view.what_passes,
        }

    def _measure_rates(self) -> None:
        self._machine = self._wb.once(
            "rates of this machine", lambda: roofline.machine_rates(self._wb.device)
        )

    def _gpu(self, view: View) -> str:
        """The GPU whose launch is told: the view's; of this machine its own where the cost model
        knows it, else the default."""
        if view.what_device != HERE:
            return view.what_device
        return token_cost.gpu_here(self._wb.device) or View().what_device


def _check_target(target: str) -> str:
    check_choice("GPU target", target, list(compiled.TARGETS))
    return target


def _check_config(config: str, target: str) -> None:
    try:
        compiled.find(config, target)
    except compiled.CompileError as error:
        raise BadInputError(str(error)) from error
