"""The parameter-randomisation check: what is redrawn when, and methods with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from models import create_model
from workbench.analyses.attribution import randomisation as check
from workbench.analyses.attribution.randomisation import (
    moved_correlation,
    randomisation,
    rank_correlation,
)
from workbench.analyses.controls import Cells, edges
from workbench.errors import BadInputError, CancelledError
from workbench.progress import CancelToken, Progress, result_of
from workbench.results import AttributionMap

STEPS = ("trained", "head", "stage 4", "stage 3", "stage 2", "stage 1", "stem")
PREFIXES = ("", "classifier.", "layers.3.", "layers.2.", "layers.1.", "layers.0.", "patch_embed.")


def map_of(values: np.ndarray, stride: int = 4, name: str = "stage1") -> AttributionMap:
    return AttributionMap(name=name, values=values.astype(np.float32), stride=stride, layer="")


def edge_maps(_, image: np.ndarray) -> tuple[AttributionMap, ...]:
    """A method that never looks at the network."""
    cells = Cells.of(map_of(np.zeros((16, 16))), 64, 64)
    return (map_of(edges(image, cells)),)


@pytest.fixture
def run(provenance):
    def make(model, image, explain, **options):
        return randomisation(model, image, explain, method="test", provenance=provenance, **options)

    return make


def test_weights_are_redrawn_from_the_head_down_and_only_in_a_copy(network, photo, run):
    trained = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    seen = []

    def explain(model, image):
        assert model is not network
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return edge_maps(model, image)

    result = result_of(run(network, photo(64, 64), explain))
    assert result.steps == STEPS
    assert len(seen) == len(STEPS)
    for number, state in enumerate(seen):
        redrawn = PREFIXES[1 : number + 1]
        for name, tensor in state.items():
            is_random = name.startswith(redrawn) if redrawn else False
            # Norms, A, D and biases of the linear layers start at constants.
            is_drawn = tensor.numel() > 1 and trained[name].float().std() > 0
            is_drawn = is_drawn and not name.endswith("A_logs")
            if not is_random:
                assert torch.equal(tensor, trained[name]), name
            elif is_drawn:
                assert not torch.equal(tensor, trained[name]), name
        changed = [n for n in state if not torch.equal(state[n], trained[n])]
        assert all(any(n.startswith(prefix) for n in changed) for prefix in redrawn)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, trained[name]), name


def test_the_last_network_is_one_that_the_model_itself_would_draw(network, photo, run):
    """Nothing of the trained network is left, not even its norms' statistics."""
    last = []

    def explain(model, image):
        last.append(model)
        return edge_maps(model, image)

    with torch.no_grad():
        worn = create_model("efficientvmamba_test", num_classes=10, seed=4).eval()
        for tensor in worn.state_dict().values():
            tensor.copy_(tensor * 3 + 1)
    result_of(run(worn, photo(64, 64), explain, seed=2))
    drawn = create_model(
        "efficientvmamba_test", num_classes=10, seed=check.FIRST_SEED + 2
    ).state_dict()
    for name, tensor in last[-1].state_dict().items():
        assert torch.equal(tensor, drawn[name]), name


def test_an_edge_detector_does_not_change_and_is_found_out(network, photo, run):
    result = result_of(run(network, photo(64, 64), edge_maps))
    np.testing.assert_allclose(result.similarity, 1, rtol=1e-6)
    np.testing.assert_allclose(result.edges, 1, rtol=1e-6)
    assert "still ranks the cells much as before" in result.verdict


def test_a_method_that_reads_only_the_head_changes_with_the_head_and_never_again(
    network, photo, run
):
    def explain(model, _):
        return (map_of(model.classifier.head.weight.detach().numpy()[:8, :64].reshape(16, 32), 2),)

    image = photo(32, 64)
    result = result_of(run(network, image, explain))
    similarity = result.similarity[:, 0]
    assert similarity[0] == pytest.approx(1)
    # Independent normal weights: 4 standard deviations of a rank correlation of 512 pairs.
    assert abs(similarity[1]) < 4 / np.sqrt(511)
    assert (similarity[1:] == similarity[1]).all()


def test_a_map_by_the_network_is_compared_as_scipy_would(network, photo, run):
    image = photo(64, 64)
    kept = []

    def explain(model, image):
        pixels = torch.from_numpy(image)[None].requires_grad_(True)
        values = torch.autograd.grad(model(pixels)[0, 3], pixels)[0][0].sum(0).numpy()
        kept.append(values)
        return (map_of(values, 1, "input"),)

    result = result_of(run(network, image, explain))
    sobel = edges(image, Cells.of(map_of(kept[0], 1), 64, 64))
    for i, values in enumerate(kept):
        expected = stats.spearmanr(values.ravel(), kept[0].ravel()).statistic
        assert result.similarity[i, 0] == pytest.approx(expected, abs=1e-6)
        expected = stats.spearmanr(values.ravel(), sobel.ravel()).statistic
        assert result.edges[i, 0] == pytest.approx(expected, abs=1e-6)
    assert abs(result.similarity[-1, 0]) < 0.5


@pytest.mark.parametrize("n_levels", [2, 5, 1000], ids=["two values", "ties", "hardly any"])
def test_rank_correlation_is_scipys(n_levels):
    rng = np.random.default_rng(n_levels)
    a = rng.integers(n_levels, size=(12, 9)).astype(np.float32)
    b = a + rng.integers(n_levels, size=(12, 9))
    expected = stats.spearmanr(a.ravel(), b.ravel()).statistic
    assert rank_correlation(a, b) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert np.isnan(rank_correlation(a, np.ones_like(b)))


def test_chance_knows_how_smooth_a_map_is():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((56, 56))
    assert moved_correlation(noise, rng) < 3 / 56
    # Every move of a striped map by its period finds the map itself, or its reverse.
    stripes = np.tile([[0.0, 1.0]], (4, 2))
    assert moved_correlation(stripes, rng) == pytest.approx(1)
    small = rng.standard_normal((4, 4))
    moved = [
        abs(stats.spearmanr(small.ravel(), np.roll(small, at, (0, 1)).ravel()).statistic)
        for at in np.ndindex(4, 4)
        if min(at) > 0
    ]
    assert any(moved_correlation(small, rng) == pytest.approx(m) for m in moved)
    y, x = np.mgrid[:56, :56] / 56 * 2 * np.pi
    assert moved_correlation(np.sin(y) + np.sin(x), rng) > 0.5  # half a turn: minus itself
    assert np.isnan(moved_correlation(np.ones((1, 1)), rng))


def test_a_map_that_is_the_same_everywhere_has_no_ranking(network, photo, run):
    result = result_of(run(network, photo(64, 64), lambda *_: (map_of(np.zeros((16, 16))),)))
    assert np.isnan(result.similarity).all()
    assert result.verdict.startswith("No map can be compared")
    assert "stage1" in result.note


def test_random_weights_are_told(network, photo, run):
    result = result_of(run(network, photo(64, 64), edge_maps))
    assert "random before" in result.note


def test_a_result_after_every_step(network, photo, run):
    items = list(run(network, photo(64, 64), edge_maps))
    results = [item for item in items if not isinstance(item, Progress)]
    assert [len(r.steps) for r in results] == list(range(1, 8))
    assert [r.similarity.shape for r in results] == [(n, 1) for n in range(1, 8)]
    assert [r.is_final for r in results] == [False] * 6 + [True]
    progress = [item for item in items if isinstance(item, Progress)]
    assert [p.what for p in progress][-1] == "maps with a random stem"


@pytest.mark.parametrize("after", range(0, 14, 3))
def test_stop_ends_it_before_the_next_map(network, photo, run, after):
    token = CancelToken()
    asked = []

    def explain(model, image):
        asked.append(model)
        return edge_maps(model, image)

    items = run(network, photo(64, 64), explain, token=token)
    for _ in range(after):
        next(items)
    n_asked = len(asked)
    token.cancel()
    with pytest.raises(CancelledError):
        list(items)
    assert len(asked) == n_asked


def test_another_network_is_refused(photo, run):
    with pytest.raises(BadInputError, match="Linear is not an EfficientVMamba"):
        next(run(torch.nn.Linear(2, 2), photo(64, 64), edge_maps))
