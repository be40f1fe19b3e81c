"""Does a map change when the network forgets? Weights are drawn anew from the head down.

Adebayo et al., "Sanity Checks for Saliency Maps" (arXiv:1810.03292), cascading randomisation: after
each step the map is made again and its ranking of the cells is compared with that of the trained
network's. A method that explains what was learned must lose the likeness; an edge detector, which
never sees the network, cannot. Written by us, since Captum has no such check.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from models import EfficientVMamba, with_scan
from models.initial_weights import init_weights
from workbench.analyses.controls import Cells, edges
from workbench.errors import BadInputError
from workbench.progress import CancelToken, Pace, Progress
from workbench.results import AttributionMap, Provenance, RandomisationResult

DEFINITION = (
    "Spearman rank correlation of each map with that of the trained network, as the weights are "
    "drawn anew from the head to the stem by the network's own initialisation (cascade); edges: of "
    "each map with an edge detector on the photo; chance: 95 % of |correlation| of the trained map "
    "with itself, moved by a quarter to three quarters of its sides"
)
# Away from the seeds that users give: the same seed would draw the weights that a random network
# already has.
FIRST_SEED = 1 << 40
N_MOVES = 200
KEPT = 0.5  # rank correlation from which on a map counts as unchanged

Explain = Callable[[Any, np.ndarray], tuple[AttributionMap, ...]]


def randomisation(
    model: Any,
    image: np.ndarray,
    explain: Explain,
    *,
    method: str,
    provenance: Provenance,
    token: CancelToken | None = None,
    seed: int = 0,
) -> Iterator[Progress | RandomisationResult]:
    """Cascading randomisation of a copy of `model`, for one normalised `[3, H, W]` image.

    `explain` makes the maps of one method with the network it is given; the class must stay the
    one that the trained network is asked about. A result after every step.
    """
    started = time.perf_counter()
    network = _copy(model)
    fresh = _copy(model)
    init_weights(fresh, FIRST_SEED + seed)
    parts = _parts(network)
    pace = Pace(1 + len(parts))
    yield pace.at(0, "maps of the trained network")
    trained = _explained(explain, network, image, token)
    control = [edges(image, Cells.of(shown, *image.shape[1:])) for shown in trained]
    rng = np.random.default_rng(seed)
    chance = np.array([moved_correlation(shown.values, rng) for shown in trained], np.float32)
    steps, similarity, likeness = ["trained"], [], []
    maps = trained
    for number, (name, prefix) in enumerate([*parts, ("", "")], start=1):
        similarity.append(
            [rank_correlation(m.values, t.values) for m, t in zip(maps, trained, strict=True)]
        )
        likeness.append([rank_correlation(m.values, e) for m, e in zip(maps, control, strict=True)])
        is_final = number > len(parts)
        yield RandomisationResult(
            provenance=replace(
                provenance,
                definition=DEFINITION,
                seed=seed,
                seconds=time.perf_counter() - started,
            ),
            method=method,
            map_names=tuple(shown.name for shown in trained),
            steps=tuple(steps),
            similarity=np.array(similarity, dtype=np.float32),
            edges=np.array(likeness, dtype=np.float32),
            chance=chance,
            verdict=verdict(trained, similarity[-1], chance) if is_final else "",
            is_final=is_final,
            note=_note(provenance, trained, similarity[-1]),
        )
        if not is_final:
            yield pace.at(number, f"maps with a random {name}")
            _redraw(network, fresh, prefix)
            maps = _explained(explain, network, image, token)
            steps.append(name)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman: Pearson correlation of the ranks, ties at their mean rank; nan if one is
    constant."""
    ranks = [_ranks(values.ravel()) for values in (a, b)]
    x, y = (r - r.mean() for r in ranks)
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else float("nan")


def moved_correlation(values: np.ndarray, rng: np.random.Generator) -> float:
    """What chance gives maps as smooth as this one: 95 % of |rank correlation| with its moves.

    The map is moved round by a quarter to three quarters of both sides.
    """
    ranks = _ranks(values.ravel()).reshape(values.shape)
    ranks -= ranks.mean()
    size = float((ranks * ranks).sum())
    if size == 0:
        return float("nan")
    found = []
    for _ in range(N_MOVES):
        moves = [rng.integers(-(-n // 4), max(1, 3 * n // 4) + 1) for n in values.shape]
        found.append(abs(float((ranks * np.roll(ranks, moves, (0, 1))).sum())) / size)
    return float(np.percentile(found, 95))


def verdict(
    trained: tuple[AttributionMap, ...], similarity: list[float], chance: np.ndarray
) -> str:
    """What is left of each map's ranking once every weight is random."""
    words = []
    for shown, left, level in zip(trained, similarity, chance, strict=True):
        if np.isnan(left):
            continue
        if abs(left) <= level:
            what = "is no more like the trained network's than chance gives: it passes"
        elif left >= KEPT:
            what = "still ranks the cells much as before: it shows little of what was learned"
        elif left <= -KEPT:
            what = "ranks the cells in reverse: without signs it would look unchanged"
        else:
            what = "keeps a part of its ranking, more than chance gives"
        words.append(f"{shown.name} {what} ({left:.2f}, chance up to {level:.2f})")
    if not words:
        return "No map can be compared: each is the same everywhere, trained or random."
    return f"With every weight random: {'; '.join(words)}."


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values at the mean of theirs, float64 `[n]`."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[place]


def _copy(model: Any) -> EfficientVMamba:
    """The same network with tensors and hooks of its own."""
    if not isinstance(model, EfficientVMamba):
        raise BadInputError(
            f"{type(model).__name__} is not an EfficientVMamba: how its weights are first drawn is "
            "not known here. Choose one of our networks."
        )
    return copy.deepcopy(with_scan(model, model.scan_spec))


def _parts(model: Any) -> list[tuple[str, str]]:
    """Parts from the head down, with the prefix of their tensors' names; patch merging belongs to
    the stage before it."""
    stages = [
        (f"stage {number}", f"layers.{number - 1}.") for number in range(len(model.dims), 0, -1)
    ]
    return [("head", "classifier."), *stages, ("stem", "patch_embed.")]


def _redraw(network: Any, fresh: Any, prefix: str) -> None:
    """Put the tensors of `fresh` whose names start with `prefix` into `network`."""
    new = fresh.state_dict()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.startswith(prefix):
                tensor.copy_(new[name])


def _explained(
    explain: Explain, network: Any, image: np.ndarray, token: CancelToken | None
) -> tuple[AttributionMap, ...]:
    if token is not None:
        token.check()
    return explain(network, image)


def _note(
    provenance: Provenance, trained: tuple[AttributionMap, ...], similarity: list[float]
) -> str:
    notes = []
    if provenance.is_random:
        notes.append(
            "The weights were random before: there was nothing to forget, and the curves show how "
            "two random networks differ."
        )
    flat = [m.name for m, left in zip(trained, similarity, strict=True) if np.isnan(left)]
    if flat:
        notes.append(
            f"No rank correlation for {', '.join(flat)}: a map that is the same everywhere has no "
            "ranking."
        )
    return " ".join(notes)
