"""Effective receptive fields: how strongly each input pixel moves one token of a network's map.

One forward pass a batch, as deep as the deepest target; then one backward pass for each target from
its own objective, which ends at the input and starts no deeper than its unit. In eval mode no layer
mixes images, so the gradient of a sum over the batch is each image's own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.analyses.checks import explain_non_finite
from workbench.analyses.erf.definitions import DEFINITIONS, Definition
from workbench.analyses.erf.images import Images, first_size, read_image
from workbench.analyses.erf.metrics import Ruler, highest_density, metrics, radial_mass
from workbench.analyses.erf.statistics import (
    NO_BAND,
    Accumulator,
    Band,
    Group,
    gathered,
    saturation,
)
from workbench.analyses.networks import Grid, Network, Unit
from workbench.errors import BadInputError
from workbench.progress import CancelToken
from workbench.results import ErfResult, Provenance

# Input pixels of one batch: bounds the memory of the backward pass (about 1.2 kB a pixel for Tiny)
# and keeps a batch near one second on two cores, so Stop answers quickly.
BATCH_PIXELS_CPU = 4 * 224 * 224
BATCH_PIXELS_GPU = 64 * 224 * 224
# Running results: not more often than one can look, and for no more than 1/30 of the time, since
# the numbers of a mean cost as much as a batch of a fast network and a band as much as some images.
# Who runs this holds the device from one result to the next: for no longer than the last one says.
SHOW_EVERY_S = 0.25
SHARE = 30
FIRST_BAND_S = 0.5  # what a band is taken to cost before the first is known
SHOW_AT_LEAST_S = 5.0
GRADIENT = "the gradient of the receptive field"
NO_GRADIENT = "no gradient at all"
NOT_FINITE = "NaN or infinity in its gradient, although every weight is finite"
NO_REACH = np.zeros((0, 0), dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Target:
    """Token `(y, x)` of a unit's map; `unit` is a name of `Network.units`."""

    unit: str
    y: int
    x: int


@dataclass
class _Run:
    """What is known of one target so far."""

    target: Target
    unit: Unit
    grid: Grid
    n_planned: int
    sums: Accumulator
    ruler: Ruler
    is_centre_token: bool
    used: dict[int, str] = field(default_factory=dict)  # names by image number
    skipped: dict[int, str] = field(default_factory=dict)  # "name: why"
    empty: dict[int, str] = field(default_factory=dict)  # names of the used that have no gradient
    trace: list[tuple[int, float, float, float]] = field(default_factory=list)
    reach: tuple[np.ndarray, float, str] | None = None


def fields(
    network: Network,
    images: Images,
    targets: Sequence[Target],
    *,
    definition: str = "mass",
    gates: str = "live",
    provenance: Provenance,
    token: CancelToken | None = None,
    seed: int = 0,
    group: Group | None = None,
) -> Iterator[tuple[ErfResult, ...]]:
    """Fields of all targets from one pass over the images; running results, the last is final.

    `images` are pairs (name, normalised input float32 `[3, H, W]`), all of one size, read once and
    in order; one that raises a `WorkbenchError` or an `OSError` is left out and listed. No hook is
    set and no torch mode is left switched on between two items, so the caller may pause or drop the
    generator.

    With a `group` each process looks at every `world`-th image, all must iterate to the end, and
    the only result is that of all images, the same in every process.
    """
    started = time.perf_counter()
    chosen = definition_of(definition)
    if not targets:
        raise ValueError("no targets: name at least one unit and token")
    height, width = first_size(images)
    runs = [_start(network, target, height, width, len(images), seed) for target in targets]
    state = gates if network.has_gates else "none"
    rank, world = (0, 1) if group is None else (group.rank, group.world)

    def results(band_of: Any, is_final: bool) -> tuple[ErfResult, ...]:
        return tuple(
            _result(network, run, chosen, state, provenance, started, band_of(run), is_final)
            for run in runs
        )

    def band(run: _Run) -> Band:
        return run.sums.band(run.ruler, chosen, run.is_centre_token)

    next_trace = 1  # taken once 1, 2, 4, 8 ... images are added; every process stops there

    def trace_before(number: int) -> None:
        nonlocal next_trace
        while next_trace <= number:
            for run in runs:
                _trace(run, group)
            next_trace *= 2

    next_show = next_band = 0.0
    mine = range(rank, len(images), world)
    # One image alone first: the first picture should be there early.
    pieces = batches(mine[:1], height, width, network) + batches(mine[1:], height, width, network)
    for batch in pieces:
        if token is not None:
            token.check()
        seen = _look(network, images, batch, targets, chosen, gates, (height, width))
        for number in batch:
            trace_before(number)
            for place, run in enumerate(runs):
                _add(run, number, *seen[number], place, chosen)
        del seen
        if group is not None or number + 1 == len(images):
            continue
        now = time.perf_counter()
        if now < next_show or not all(map(_is_there, runs)):
            continue
        has_band = 0 < next_band < now
        shown = results(band if has_band else lambda _: NO_BAND, is_final=False)
        took = time.perf_counter() - now
        yield shown
        now = time.perf_counter()
        next_show = now + min(max(SHOW_EVERY_S, SHARE * took), SHOW_AT_LEAST_S)
        if has_band:
            next_band = now + SHARE * took
        elif next_band == 0:
            next_band = now + SHARE * FIRST_BAND_S
    trace_before(len(images) - 1)
    for run in runs:
        _trace(run, group)
    if group is not None:
        runs = [_merged(run, group) for run in runs]
    for run in runs:
        if not _is_there(run):
            why = tuple(run.skipped.values())
            raise empty_field(network, run.unit, run.target.y, run.target.x, why)
    yield results(band, is_final=True)


def definition_of(key: str) -> Definition:
    if key not in DEFINITIONS:
        raise BadInputError(
            f"There is no definition {key[:40]!r}. Choose one of: {', '.join(DEFINITIONS)}."
        )
    return DEFINITIONS[key]


def batches(numbers: Sequence[int], height: int, width: int, network: Network) -> list[list[int]]:
    """`numbers` in pieces that the device takes at once."""
    is_gpu = device_of(network).type == "cuda"
    budget = BATCH_PIXELS_GPU if is_gpu else BATCH_PIXELS_CPU
    size = max(1, budget // (height * width))
    return [list(numbers[at : at + size]) for at in range(0, len(numbers), size)]


def device_of(network: Network) -> torch.device:
    return next(network.module.parameters()).device


def _start(
    network: Network, target: Target, height: int, width: int, n_images: int, seed: int
) -> _Run:
    grid = network.grid(target.unit, height, width)
    unit = unit_of(network, target.unit)
    check_token(unit, grid, target.y, target.x)
    return _Run(
        target=target,
        unit=unit,
        grid=grid,
        n_planned=n_images,
        sums=Accumulator(height, width, n_images, seed),
        ruler=Ruler((height, width), grid.centre(target.y, target.x)),
        is_centre_token=(target.y, target.x) == (grid.rows // 2, grid.columns // 2),
    )


def unit_of(network: Network, name: str) -> Unit:
    """The unit that `Network.grid` has let pass."""
    return next(unit for unit in network.units() if unit.name == name)


def check_token(unit: Unit, grid: Grid, y: int, x: int) -> None:
    if not (0 <= y < grid.rows and 0 <= x < grid.columns):
        raise BadInputError(
            f"Token ({y}, {x}) is outside {unit.label}, which has {grid.rows} x {grid.columns} "
            f"tokens here. Choose y from 0 to {grid.rows - 1} and x from 0 to {grid.columns - 1}."
        )


def _look(
    network: Network,
    images: Images,
    batch: Sequence[int],
    targets: Sequence[Target],
    definition: Definition,
    gates: str,
    size: tuple[int, int],
) -> dict[int, tuple[str, list[np.ndarray] | str]]:
    """For each image of `batch` its name and its map `[H, W]` for each target, or why it has
    none."""
    read = {number: read_image(images, number, size) for number in batch}
    pixels = [image for _, image in read.values() if not isinstance(image, str)]
    if not pixels:
        return {number: (name, str(why)) for number, (name, why) in read.items()}
    of_targets = []
    is_finite = torch.ones(len(pixels), dtype=torch.bool)
    stacked = torch.from_numpy(np.stack(pixels))
    for gradient, objective in input_gradients(network, stacked, targets, definition, gates):
        # A sum is not finite if one of its values is not: one pass instead of three.
        is_finite &= torch.isfinite(gradient.flatten(1).sum(1) + objective).cpu()
        of_targets.append(definition.rectification.of(gradient).float().cpu().numpy())
    if not is_finite.all():
        check_weights(network)
    found: dict[int, tuple[str, list[np.ndarray] | str]] = {}
    place = 0
    for number, (name, image) in read.items():
        if isinstance(image, str):
            found[number] = name, image
            continue
        found[number] = name, NOT_FINITE
        if is_finite[place]:
            found[number] = name, [maps[place] for maps in of_targets]
        place += 1
    return found


def _add(
    run: _Run,
    number: int,
    name: str,
    maps: list[np.ndarray] | str,
    place: int,
    definition: Definition,
) -> None:
    """Add an image's map for the target at `place` to its sums, or list it with the reason."""
    if isinstance(maps, str):
        run.skipped[number] = f"{name}: {maps}"
        return
    mass = float(maps[place].sum(dtype=np.float64))
    per_image = definition.averaging.of.per_image
    if mass <= 0:
        if per_image:
            run.skipped[number] = f"{name}: {NO_GRADIENT}"
            return
        run.empty[number] = name
    run.used[number] = name
    run.sums.add(number, maps[place], mass if per_image else 1.0)


def input_gradients(
    network: Network,
    images: Tensor,
    targets: Sequence[Target],
    definition: Definition = DEFINITIONS["mass"],
    gates: str = "live",
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each target: gradient of the images' own objectives `[B, 3, H, W]`, and these `[B]`."""
    parameter = next(network.module.parameters())
    with torch.enable_grad():
        # Channels last is our networks' own layout, and convolutions of others are faster in it.
        images = images.detach().to(
            parameter.device, parameter.dtype, memory_format=torch.channels_last
        )
        images.requires_grad_(True)
        units = list(dict.fromkeys(target.unit for target in targets))
        found = dict(zip(units, network.features(images, units, gates), strict=True))
        objectives = [
            definition.objective.of(found[target.unit], target.y, target.x) for target in targets
        ]
    del found
    while objectives:
        objective = objectives.pop(0)
        gradient = None
        if objective.requires_grad:  # else no pixel reaches it
            (gradient,) = torch.autograd.grad(
                objective,
                images,
                torch.ones_like(objective),
                retain_graph=bool(objectives),
                allow_unused=True,
            )
        yield (
            torch.zeros_like(images) if gradient is None else gradient,
            objective.detach(),
        )


def check_weights(network: Network) -> None:
    """Raise if a weight is not finite: then it is not the image's fault."""
    tensors = [*network.module.parameters(), *network.module.buffers()]
    if not all(torch.isfinite(t).all() for t in tensors if t.is_floating_point()):
        raise BadInputError(explain_non_finite(network.module, GRADIENT))


def _is_there(run: _Run) -> bool:
    """Whether any image so far has a gradient."""
    return len(run.used) > len(run.empty)


def empty_field(
    network: Network, unit: Unit, y: int, x: int, skipped: Sequence[str]
) -> BadInputError:
    """The error for a token that no image moves; `skipped` are "name: why" of those left out."""
    reasons = {text.partition(": ")[2] for text in skipped}
    if reasons == {NOT_FINITE}:
        return BadInputError(explain_non_finite(network.module, GRADIENT))
    listed = f" Left out: {'; '.join(skipped[:3])}." if skipped else ""
    return BadInputError(
        f"The receptive field of token ({y}, {x}) of {unit.label} is empty: no image moves it, "
        f"every gradient is zero. Choose another token or other weights.{listed}"
    )


def _trace(run: _Run, group: Group | None) -> None:
    """One point of the convergence, from the images so far."""
    sums = run.sums if group is None else run.sums.merged(group, with_resamples=False)
    if sums.n == 0:
        return
    mean = sums.mean()
    if not mean.sum() > 0:
        return
    area50, area90 = (highest_density(mean, share)[0] for share in (0.5, 0.9))
    run.trace.append((sums.n, area50, area90, sums.split_distance()))


def _merged(run: _Run, group: Group) -> _Run:
    """The run over the images of all processes."""
    listed = [run.used, run.skipped, run.empty]
    of_all: list[dict[int, str]] = [{}, {}, {}]
    for lists in gathered(group, [list(texts.items()) for texts in listed]):
        for texts, items in zip(of_all, lists, strict=True):
            texts.update((number, text) for number, text in items)
    used, skipped, empty = (dict(sorted(texts.items())) for texts in of_all)
    sums = run.sums.merged(group, with_resamples=True)
    return replace(run, sums=sums, used=used, skipped=skipped, empty=empty)


def _result(
    network: Network,
    run: _Run,
    definition: Definition,
    gates: str,
    provenance: Provenance,
    started: float,
    band: Band,
    is_final: bool,
) -> ErfResult:
    averaged = run.sums.mean()
    total = float(averaged.sum())
    mass = averaged / total
    keeps_scale = definition.averaging.of.keeps_scale
    target, grid, unit = run.target, run.grid, run.unit
    found = metrics(
        mass,
        run.ruler.centre,
        is_centre_token=run.is_centre_token,
        shown=definition.shown(averaged if keeps_scale else mass),
        ruler=run.ruler,
    )
    found["split_distance"] = run.sums.split_distance()
    if definition.metric.of is not None:
        found |= definition.metric.of(mass)
    radii, radial = radial_mass(mass, run.ruler)
    is_first = len(run.used) + len(run.skipped) == 1
    if run.reach is None and (is_final or not is_first):  # not before the first picture
        run.reach = _reach(network, run)
    reach, reach_share, reach_note = run.reach or (NO_REACH, float("nan"), "")
    note = ""
    if run.empty:
        names = ", ".join(run.empty.values())
        note = f"{names}: {NO_GRADIENT}, counted as zeros as this definition does."
    n, area50, area90, split = zip(*run.trace, strict=True) if run.trace else ((),) * 4
    return ErfResult(
        provenance=replace(
            provenance,
            definition=definition.line,
            parameters={
                **provenance.parameters,
                "unit": unit.name,
                "stage": unit.stage,
                "y": target.y,
                "x": target.x,
                "erf_definition": definition.key,
                "gates": gates,
                "n_images": len(run.used),
            },
            seed=run.sums.seed,
            seconds=time.perf_counter() - started,
        ),
        network=network.label,
        unit=unit.name,
        unit_label=unit.label,
        gates=gates,
        stage=unit.stage,
        y=target.y,
        x=target.x,
        rows=grid.rows,
        columns=grid.columns,
        stride=grid.stride,
        centre=run.ruler.centre,
        definition=definition.key,
        parts=definition.parts,
        mass=mass.astype(np.float32),
        raw_sum=total if keeps_scale else 1.0,
        radius_px=radii.astype(np.float32),
        radial_mass=radial.astype(np.float32),
        radial_low=band.radial_low,
        radial_high=band.radial_high,
        n_images=len(run.used),
        n_planned=run.n_planned,
        image_names=tuple(run.used.values()),
        skipped=tuple(run.skipped.values()),
        metrics=found,
        metric_low=band.low,
        metric_high=band.high,
        n_bootstrap=band.n,
        convergence_n=np.array(n, dtype=np.int32),
        convergence_area50=np.array(area50, dtype=np.float32),
        convergence_area90=np.array(area90, dtype=np.float32),
        convergence_split=np.array(split, dtype=np.float32),
        saturation=saturation(run.ruler, mass, found, band),
        reach=reach,
        reach_share=reach_share,
        reach_note=reach_note,
        is_final=is_final,
        note=note,
    )


def _reach(network: Network, run: _Run) -> tuple[np.ndarray, float, str]:
    pixels, note = network.reach(run.target.unit, run.target.y, run.target.x, *run.ruler.shape)
    if pixels is None:
        return NO_REACH, float("nan"), note
    return pixels.astype(np.uint8), float(pixels.mean()), note
