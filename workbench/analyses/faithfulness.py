"""Does the network use what a map shows? Insertion, deletion, infidelity and sensitivity.

Insertion and deletion (Petsiuk et al., arXiv:1806.07421) put the pixels back, or take them away, in
the order of the map and follow the class. Infidelity (Yeh et al., arXiv:1901.09392) asks whether
the map predicts what removing a square changes; sensitivity (same paper) how much the map itself
changes with a little noise. Every number stands beside those of two controls on the same cells: the
map's values put in random places, and an edge detector.

Captum has no insertion and deletion, and its infidelity repeats the passes for each map; the tests
hold infidelity and sensitivity against Captum's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from workbench.analyses.attribution.input_methods import make_baseline
from workbench.analyses.attribution.methods import BASELINES
from workbench.analyses.attribution.targets import Target, resolve_target
from workbench.analyses.checks import explain_non_finite
from workbench.analyses.controls import Cells, edges
from workbench.errors import BadInputError
from workbench.progress import CancelToken, Pace, Progress
from workbench.results import (
    AttributionMap,
    FaithfulnessCurve,
    FaithfulnessResult,
    MapsResult,
    Provenance,
)

DEFINITION = (
    "insertion and deletion: {probability} while pixels are put into the baseline, or taken out of "
    "the photo, by falling value of the map's cells; AUC: trapezoid over the share of pixels; "
    "infidelity: mean of (b * sum of the map over a square - change of the {objective} when the "
    "square is replaced by the baseline)^2 over the mean of change^2, b >= 0 fitted: 0 = the map "
    "foretells every change, 1 = none; sensitivity: largest |map(photo + noise) - map| / |map|"
)
BATCH = 8  # images per pass: progress and Stop several times a second
N_SQUARES = 48
SQUARE_SIDES = (8, 3)  # the shorter side over these: smallest and largest side of a square
N_NOISES = 10
NOISE = 0.02  # largest change of a normalised pixel
BAND = (5, 95)  # per cent of the random orders
STEPS = (2, 200)
NOISES = (1, 100)
ORDERS = (4, 100)  # with fewer, chance is hardly known
Run = Generator[Progress, None, Any]


def faithfulness(
    model: Any,
    image: np.ndarray,
    classes: Sequence[str],
    maps: MapsResult,
    map_name: str,
    explain: Callable[[np.ndarray], np.ndarray] | None,
    *,
    baseline: str = "blur",
    steps: int = 24,
    n_random: int = 6,
    n_noises: int = N_NOISES,
    provenance: Provenance,
    token: CancelToken | None = None,
    seed: int = 0,
) -> Iterator[Progress | FaithfulnessResult]:
    """One of `maps` held against random orders and edges, for one normalised `[3, H, W]` image.

    `explain` makes the same map `[h, w]` of another image, for the same class, `n_noises` times;
    without it there is no sensitivity. Results come after the map's own curves, the edges', the
    random orders', and at the end (`is_final`).
    """
    started = time.perf_counter()
    _check("steps", steps, STEPS)
    _check("n_random", n_random, ORDERS)
    _check("n_noises", n_noises, NOISES)
    shown = _map_named(maps, map_name)
    cells = Cells.of(shown, *image.shape[1:])
    n_noises = n_noises if explain is not None else 0
    n_passes = 2 + (4 + n_random) * (steps - 1) + N_SQUARES + n_noises
    passes = _Passes(model, image, baseline, seed, Pace(n_passes), token)
    ends = yield from passes.logits(_none_and_all(cells), "baseline and photo")
    target = resolve_target(ends[1], maps.target, maps.contrast)
    panel = _Panel(passes, cells, target, target.of(ends), _probability(target, ends), steps)
    # Names of their own: the method may have steps and a baseline of its own.
    parameters: dict[str, Any] = {
        "map": map_name,
        "curve_baseline": baseline,
        "curve_steps": steps,
        "random_orders": n_random,
        "squares": N_SQUARES,
        "noises": n_noises,
        "noise": NOISE,
    }
    blank = FaithfulnessResult(
        provenance=replace(
            provenance,
            definition=_definition(target),
            parameters={**provenance.parameters, **parameters},
            seed=seed,
        ),
        method=maps.method,
        map_name=map_name,
        target=target.index,
        target_name=classes[target.index],
        shares=(panel.cuts / cells.index.size).astype(np.float32),
        curves=(),
        baseline=BASELINES[baseline],
        n_random=n_random,
        verdict="",
        is_final=False,
        note=_note(shown, n_noises, panel),
    )

    def result(*curves: FaithfulnessCurve, **changes: Any) -> FaithfulnessResult:
        timed = replace(blank.provenance, seconds=time.perf_counter() - started)
        return replace(blank, provenance=timed, curves=curves, **changes)

    # One stream of numbers per purpose: more random orders leave the squares where they are.
    ties, orders, squares, noises = (np.random.default_rng([seed, i]) for i in range(4))
    own = yield from panel.curve("map", cells.ranks(shown.values, ties))
    yield result(own)
    found_edges = edges(image, cells)
    edge = yield from panel.curve("edges", cells.ranks(found_edges, ties))
    yield result(own, edge)
    random = [orders.permuted(shown.values, axis=None) for _ in range(n_random)]
    chance, margin = yield from panel.band([cells.ranks(v, orders) for v in random])
    curves = [own, chance, edge]
    words = verdict(own, chance, edge, margin)
    yield result(*curves, verdict=words)
    masks = square_masks(cells.index.shape, squares)
    scores = yield from panel.infidelities(masks, [shown.values], random, [found_edges])
    curves = [replace(c, infidelity=score) for c, score in zip(curves, scores, strict=True)]
    if explain is not None:
        noisy, noisy_edges = yield from passes.explained(explain, cells, noises, n_noises)
        # Drawn anew for each photo, as by a method that looks at nothing.
        drawn = [orders.permuted(shown.values, axis=None) for _ in range(n_noises)]
        pairs = ((shown.values, noisy), (random[0], drawn), (found_edges, noisy_edges))
        curves = [
            replace(c, sensitivity=sensitivity(*pair))
            for c, pair in zip(curves, pairs, strict=True)
        ]
    yield result(*curves, verdict=words, is_final=True)


def _none_and_all(cells: Cells) -> np.ndarray:
    """Keep no pixel, and keep every one: bool `[2, H, W]`."""
    return np.stack([np.full(cells.index.shape, keep) for keep in (False, True)])


def square_masks(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Squares at random places inside an input of `shape` (H, W), bool `[N_SQUARES, H, W]`."""
    height, width = shape
    smallest, largest = (max(1, min(height, width) // part) for part in SQUARE_SIDES)
    masks = np.zeros((N_SQUARES, height, width), dtype=bool)
    for mask in masks:
        side = rng.integers(smallest, largest + 1)
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        mask[top : top + side, left : left + side] = True
    return masks


def infidelity(foretold: np.ndarray, changes: np.ndarray) -> float:
    """mean (b foretold - change)^2 / mean change^2 with the best b >= 0; nan if nothing changes.

    b makes maps of different scale comparable (Captum: `normalize=True`); it is not negative, for
    a map that foretells the opposite of what happens is not faithful.
    """
    changes, foretold = changes.astype(np.float64), foretold.astype(np.float64)
    power = foretold @ foretold
    scale = max(0.0, float(foretold @ changes) / power) if power > 0 else 0.0
    total = float(changes @ changes)
    return float(((scale * foretold - changes) ** 2).sum() / total) if total > 0 else float("nan")


def sensitivity(values: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """Largest |other - values| / |values| (Euclidean); nan for a map that is zero everywhere."""
    size = float(np.linalg.norm(values))
    if size == 0:
        return float("nan")
    return max(float(np.linalg.norm(other - values)) / size for other in others)


class _Passes:
    """Counted passes of the network over mixtures of photo and baseline."""

    def __init__(
        self,
        model: Any,
        image: np.ndarray,
        baseline: str,
        seed: int,
        pace: Pace,
        token: CancelToken | None,
    ) -> None:
        parameter = next(model.parameters())
        self.model, self.image, self.pace, self.token = model, image, pace, token
        self.photo = torch.from_numpy(image).to(parameter.device, parameter.dtype)
        generator = torch.Generator().manual_seed(seed)
        self.baseline = make_baseline(self.photo[None], baseline, generator)[0]
        self.done = 0

    def logits(self, keep: np.ndarray, what: str) -> Run:
        """Logits `[n, classes]` (float64) of the photo where `keep` `[n, H, W]`, else baseline."""
        found = []
        for start in range(0, len(keep), BATCH):
            self._check()
            here = torch.from_numpy(keep[start : start + BATCH]).to(self.photo.device)
            with torch.inference_mode():
                mixed = torch.where(here[:, None], self.photo, self.baseline)
                found.append(self.model(mixed).double().cpu())
            if not torch.isfinite(found[-1]).all():
                raise BadInputError(explain_non_finite(self.model, "the logits of a changed photo"))
            yield self._advance(len(here), what)
        return torch.cat(found)

    def explained(
        self,
        explain: Callable[[np.ndarray], np.ndarray],
        cells: Cells,
        rng: np.random.Generator,
        n: int,
    ) -> Run:
        """Maps, and edges, of `n` photos with noise: two lists of `[h, w]`."""
        maps, edge_maps = [], []
        for _ in range(n):
            self._check()
            noise = rng.uniform(-NOISE, NOISE, self.image.shape).astype(np.float32)
            maps.append(explain(self.image + noise))
            edge_maps.append(edges(self.image + noise, cells))
            yield self._advance(1, "maps of photos with noise")
        return maps, edge_maps

    def _check(self) -> None:
        if self.token is not None:
            self.token.check()

    def _advance(self, n: int, what: str) -> Progress:
        self.done += n
        return self.pace.at(self.done, what)


@dataclass(frozen=True)
class _Panel:
    """What map and controls share."""

    passes: _Passes
    cells: Cells
    target: Target
    objectives: torch.Tensor  # [2] of the baseline and of the photo
    ends: np.ndarray  # [2] probability at the baseline and at the photo
    steps: int

    @property
    def cuts(self) -> np.ndarray:
        """Numbers of pixels, int64 `[steps + 1]`, none and all included."""
        n_pixels = self.cells.index.size
        return np.rint(np.linspace(0, n_pixels, self.steps + 1)).astype(np.int64)

    def inserted(self, ranks: np.ndarray, what: str) -> Run:
        """Probability after each cut, float64 `[S]`, as the first pixels are put in."""
        inner = self.cuts[1:-1, None, None]
        logits = yield from self.passes.logits(ranks < inner, what)
        return np.concatenate((self.ends[:1], _probability(self.target, logits), self.ends[1:]))

    def curve(self, name: str, ranks: np.ndarray) -> Run:
        """Both curves of one order."""
        what = {"map": "curves of the map", "edges": "curves of the edges"}[name]
        insertion = yield from self.inserted(ranks, what)
        # What is left of a deletion is an insertion in the reverse order, read from its end.
        reverse = ranks.max() - ranks
        deletion = (yield from self.inserted(reverse, what))[::-1]
        return self._curve(name, insertion[None], deletion[None])

    def band(self, orders: Sequence[np.ndarray]) -> Run:
        """Mean curves of random orders, and the margin within which an AUC is like theirs.

        The deletions are those of the reverse orders, which are random as well.
        """
        found = []
        for number, ranks in enumerate(orders, start=1):
            what = f"random order {number} of {len(orders)}"
            found.append((yield from self.inserted(ranks, what)))
        insertion = np.stack(found)
        curve = self._curve("random", insertion, insertion[:, ::-1])
        return curve, chance_margin(self._auc(insertion))

    def infidelities(self, masks: np.ndarray, *groups: Sequence[np.ndarray]) -> Run:
        """Mean infidelity of each group of maps `[h, w]`, all by the same passes.

        `masks` `[n, H, W]` say which pixels give way to the baseline.
        """
        logits = yield from self.passes.logits(~masks, "squares for the infidelity")
        changes = (self.objectives[1] - self.target.of(logits)).numpy()
        hidden = masks.reshape(len(masks), -1)
        return [
            float(np.mean([infidelity(hidden @ self.cells.spread(v).ravel(), changes) for v in g]))
            for g in groups
        ]

    def _auc(self, curves: np.ndarray) -> np.ndarray:
        """Area below each of the curves `[n, S]` over the share of pixels, trapezoids."""
        return np.trapezoid(curves, self.cuts / self.cuts[-1], axis=-1)

    def _curve(self, name: str, insertion: np.ndarray, deletion: np.ndarray) -> FaithfulnessCurve:
        """`[orders, S]` each, at the same cuts."""
        bands = {}
        for what, values in (("insertion", insertion), ("deletion", deletion)):
            low, high = np.percentile(values, BAND, axis=0) if len(values) > 1 else ((), ())
            bands[f"{what}_low"] = np.asarray(low, dtype=np.float32)
            bands[f"{what}_high"] = np.asarray(high, dtype=np.float32)
        return FaithfulnessCurve(
            name=name,
            insertion=insertion.mean(0).astype(np.float32),
            deletion=deletion.mean(0).astype(np.float32),
            **bands,
            insertion_auc=float(self._auc(insertion).mean()),
            deletion_auc=float(self._auc(deletion).mean()),
            infidelity=float("nan"),
            sensitivity=float("nan"),
        )


def chance_margin(values: np.ndarray) -> float:
    """How far one more value like these `[n]`, normally distributed, lies from their mean at most,
    in 19 of 20 cases.

    t * deviation * sqrt(1 + 1/n), with Student's t for n - 1 degrees of freedom by its expansion
    (Abramowitz and Stegun 26.7.5).
    """
    n = len(values)
    z, v = 1.959964, n - 1
    t = (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
    return float(t * np.std(values, ddof=1) * np.sqrt(1 + 1 / n))


def verdict(
    own: FaithfulnessCurve, chance: FaithfulnessCurve, edge: FaithfulnessCurve, margin: float
) -> str:
    """The map beside each control; AUCs that differ by no more than `margin` count as equal."""
    words = [
        f"{name}: {_compared(own, control, margin)}"
        for name, control in (("random orders", chance), ("edges", edge))
    ]
    numbers = [
        f"{name} {getattr(own, key):.3f} (random {getattr(chance, key):.3f}, "
        f"edges {getattr(edge, key):.3f})"
        for name, key in (("insertion AUC", "insertion_auc"), ("deletion AUC", "deletion_auc"))
    ]
    return (
        f"Against {words[0]}. Against {words[1]}. {numbers[0][0].upper()}{numbers[0][1:]}, higher "
        f"is better; {numbers[1]}, lower is better. Differences up to {margin:.3f} count as none: "
        "of random orders, one in twenty differs more from the others."
    )


def _compared(own: FaithfulnessCurve, control: FaithfulnessCurve, margin: float) -> str:
    gains = {
        "insertion": own.insertion_auc - control.insertion_auc,
        "deletion": control.deletion_auc - own.deletion_auc,
    }
    words = {
        name: "better" if gain > margin else "worse" if gain < -margin else "no different"
        for name, gain in gains.items()
    }
    if len(set(words.values())) == 1:
        return words["insertion"]
    return ", ".join(f"{word} by {name}" for name, word in words.items())


def _probability(target: Target, logits: torch.Tensor) -> np.ndarray:
    """`[n, classes] -> [n]`: softmax of the class; with a contrast, of these two classes alone."""
    if target.contrast is None:
        return logits.softmax(1)[:, target.index].numpy()
    return target.of(logits).sigmoid().numpy()


def _definition(target: Target) -> str:
    if target.contrast is None:
        probability = "softmax probability of the class"
    else:
        probability = "sigmoid of the difference of the two logits"
    return DEFINITION.format(probability=probability, objective=target.words)


def _check(name: str, value: int, allowed: tuple[int, int]) -> None:
    low, high = allowed
    if not low <= value <= high:
        raise BadInputError(f"{name} is {value}: choose a number from {low} to {high}.")


def _map_named(maps: MapsResult, name: str) -> AttributionMap:
    for shown in maps.maps:
        if shown.name == name:
            if not np.isfinite(shown.values).all():
                raise BadInputError(
                    f"The map {name!r} holds NaN or infinity: no order follows from it. Make the "
                    "map again, or choose another method."
                )
            return shown
    known = ", ".join(shown.name for shown in maps.maps)
    raise BadInputError(f"{maps.label} has no map {name!r}. Choose one of {known}.")


def _note(shown: AttributionMap, n_noises: int, panel: _Panel) -> str:
    notes = []
    if np.ptp(shown.values) == 0:
        notes.append("This map is the same everywhere: its order is a random one.")
    if panel.ends[0] >= panel.ends[1]:
        notes.append(
            f"The baseline gets {panel.ends[0]:.3f} where the photo gets {panel.ends[1]:.3f}: "
            "for this class the photo is no better than the baseline, and the curves say little. "
            "Choose another baseline or class."
        )
    if n_noises == 0:
        notes.append("Sensitivity was not computed: the method was not at hand.")
    elif n_noises < N_NOISES:
        photos = "1 photo" if n_noises == 1 else f"{n_noises} photos"
        notes.append(
            f"Sensitivity is the largest change among {photos} with noise, not {N_NOISES}: one map "
            "of this method takes many passes. It may be lower than that of a faster method for "
            "this reason alone."
        )
    return " ".join(notes)
