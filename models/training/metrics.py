"""What a classifier's logits say about it: accuracy, confusion, calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.training.data import Batch, normalise


@dataclass(frozen=True)
class Predictions:
    """Logits of a split in file order, without the images that could not be read."""

    logits: Tensor  # float32 [n, K]
    labels: Tensor  # int64 [n]
    indices: Tensor  # int64 [n], place in the split
    problems: dict[int, str]


def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    tick: Callable[[int], None] = lambda n_images: None,
) -> Predictions:
    """Runs `model` in evaluation mode over the batches and puts its mode back."""
    was_training = model.training
    model.eval()
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    problems: dict[int, str] = {}
    try:
        with torch.inference_mode():
            for batch in batches:
                problems |= batch.problems
                if len(batch.labels):
                    logits = model(normalise(batch.images.to(device))).float().cpu()
                    parts.append((logits, batch.labels, batch.indices))
                tick(len(batch.labels) + len(batch.problems))
    finally:
        model.train(was_training)
    columns = zip(*parts, strict=True) if parts else ([], [], [])
    logits, labels, indices = (torch.cat(list(c)) if parts else torch.empty(0) for c in columns)
    return Predictions(logits, labels, indices, problems)


def top_k(logits: Tensor, labels: Tensor, k: int) -> float:
    """Per cent of rows of `[n, K]` whose label is among the `k` largest (all of them if K < k)."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return 100.0 * (best == labels[:, None]).any(1).float().mean().item()


def mean_loss(logits: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats."""
    return F.cross_entropy(logits, labels).item()


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts `[K, K]`: row = true class, column = predicted class."""
    n_classes = logits.shape[1]
    cells = labels * n_classes + logits.argmax(1)
    return torch.bincount(cells, minlength=n_classes**2).view(n_classes, n_classes)


@dataclass(frozen=True)
class Difference:
    """Top-1 of one model less that of another on the same images, in percentage points."""

    value: float
    low: float  # 95 % interval over images; training again with another seed varies more
    high: float
    n_images: int


def paired_difference(
    correct: np.ndarray, other: np.ndarray, n_resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Percentile bootstrap over images of the mean difference of two boolean arrays `[n]`."""
    difference = correct.astype(np.int8) - other.astype(np.int8)
    # Only the counts of -1, 0 and +1 matter: drawing them is drawing the images.
    values, counts = np.unique(difference, return_counts=True)
    rng = np.random.default_rng(seed)
    n = len(difference)
    means = rng.multinomial(n, counts / n, n_resamples) @ values / n
    low, high = np.percentile(means, (2.5, 97.5))
    return Difference(100 * difference.mean(), 100 * float(low), 100 * float(high), n)


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy in equal-width bins; empty bins are None."""

    expected_error: float  # mean |accuracy - confidence|, weighted by images, 0 to 1
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]


def calibration(logits: Tensor, labels: Tensor, n_bins: int = 15) -> Calibration:
    """Expected calibration error, https://arxiv.org/abs/1706.04599 section 2."""
    probability, predicted = logits.softmax(1).max(1)
    correct = (predicted == labels).double()
    edges = torch.linspace(0, 1, n_bins + 1)
    bins = torch.bucketize(probability, edges[1:-1])
    counts = torch.bincount(bins, minlength=n_bins)
    confidence_sum = torch.bincount(bins, probability.double(), minlength=n_bins)
    correct_sum = torch.bincount(bins, correct, minlength=n_bins)
    error = (confidence_sum - correct_sum).abs().sum().item() / max(len(labels), 1)

    def means(sums: Tensor) -> tuple[float | None, ...]:
        pairs = zip(sums.tolist(), counts.tolist(), strict=True)
        return tuple(s / n if n else None for s, n in pairs)

    return Calibration(
        error,
        tuple(edges.tolist()),
        tuple(counts.tolist()),
        means(confidence_sum),
        means(correct_sum),
    )
