"""Accuracy, confusion and calibration against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.training import metrics


def test_top_k_and_confusion() -> None:
    logits = torch.tensor([[3.0, 2, 1], [1, 3, 2], [1, 2, 3], [3, 2, 1]])
    labels = torch.tensor([0, 2, 2, 1])
    assert metrics.top_k(logits, labels, 1) == 50.0
    assert metrics.top_k(logits, labels, 2) == 100.0
    assert metrics.top_k(logits, labels, 5) == 100.0
    assert metrics.confusion(logits, labels).tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]


def test_calibration_of_known_confidences() -> None:
    # Two classes with p = 0.9 (one of two right) and p = 0.6 (right).
    def row(p: float) -> list[float]:
        return [math.log(p), math.log(1 - p)]

    logits = torch.tensor([row(0.9), row(0.9), row(0.6)])
    got = metrics.calibration(logits, torch.tensor([0, 1, 0]), n_bins=10)
    assert sum(got.counts) == 3 and len(got.edges) == 11
    assert got.expected_error == pytest.approx((2 * 0.4 + 0.4) / 3, abs=1e-6)
    assert got.accuracy[5] == 1.0 and got.confidence[5] == pytest.approx(0.6, abs=1e-6)
    assert got.accuracy[0] is None


def test_paired_difference_covers_the_truth() -> None:
    correct = np.array([True] * 60 + [False] * 40)
    same = metrics.paired_difference(correct, correct)
    assert (same.value, same.low, same.high, same.n_images) == (0, 0, 0, 100)
    other = correct.copy()
    other[:10] = False
    got = metrics.paired_difference(correct, other)
    assert got.value == pytest.approx(10)
    # A share of 0.1 among 100 has a standard error of 3 points.
    assert 10 - 2.2 * 3 < got.low < 10 - 1.4 * 3 and 10 + 1.4 * 3 < got.high < 10 + 2.4 * 3
    assert metrics.paired_difference(correct, other) == got


def test_mean_loss_is_cross_entropy() -> None:
    logits = torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    want = -(math.log(0.75) + math.log(0.5)) / 2
    assert metrics.mean_loss(logits, torch.tensor([1, 0])) == pytest.approx(want, rel=1e-6)
