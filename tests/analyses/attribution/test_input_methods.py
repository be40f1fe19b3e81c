"""Maps of the input against formulas written out by hand and against Captum; `explain` as a whole:
what it refuses, what it says, and that it leaves nothing behind."""

from __future__ import annotations

import copy
import random

import captum.attr
import numpy as np
import pytest
import torch

import models
from kernels import scan_order
from workbench.analyses.attribution import input_methods
from workbench.analyses.attribution.explain import completeness_verdict, explain
from workbench.analyses.attribution.input_methods import make_baseline, scan_runs
from workbench.analyses.attribution.methods import BASELINES, METHODS
from workbench.analyses.attribution.stage_methods import ExplainedNetwork
from workbench.analyses.attribution.targets import Target
from workbench.errors import BadInputError, CancelledError
from workbench.progress import CancelToken

CLASSES = tuple(f"class {i}" for i in range(10))
TARGET, OTHER = 3, 5
QUICK = {
    "layer_ig": {"steps": 4},
    "conductance": {"steps": 4},
    "integrated_gradients": {"steps": 4},
    "gradient_shap": {"samples": 4},
    "smoothgrad": {"samples": 4},
    "occlusion_scan": {"pieces": 4},
}


def explained(model) -> ExplainedNetwork:
    network = ExplainedNetwork(model)
    network.target = Target(TARGET, OTHER)
    return network


def tensor(photo, *size: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(photo(*size, seed))[None]


def objective_of(model):
    def f(x):
        logits = model(x)
        return logits[:, TARGET] - logits[:, OTHER]

    return f


def gradient(model, x: torch.Tensor) -> np.ndarray:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(objective_of(model)(x).sum(), x)[0].numpy()


@pytest.fixture(scope="module")
def no_relu() -> models.EfficientVMamba:
    return models.create_model(
        "efficientvmamba_test", num_classes=10, evss_stages=(1, 2, 3, 4), seed=1
    ).eval()


# Gradients


def test_saliency_is_the_gradient_against_finite_differences(network, photo):
    model = copy.deepcopy(network).double()
    x = tensor(photo, 64, 64).double()
    found = input_methods.saliency(objective_of(model), x)
    f, step = objective_of(model), 1e-5
    for y, column in [(0, 0), (17, 40), (63, 63)]:
        sizes = []
        for c in range(3):
            moved = [x.clone(), x.clone()]
            for copy_, sign in zip(moved, (1, -1), strict=True):
                copy_[0, c, y, column] += sign * step
            with torch.no_grad():
                sizes.append(abs(float(f(moved[0]) - f(moved[1]))) / (2 * step))
        assert found[y, column].item() == pytest.approx(max(sizes), rel=1e-4)


def test_input_gradient_is_the_formula(network, photo):
    x = tensor(photo, 64, 96)
    found = input_methods.input_gradient(objective_of(network), x)
    wanted = (x.numpy() * gradient(network, x))[0].sum(0)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_integrated_gradients_are_the_formula_in_float64(network, photo, steps):
    model = copy.deepcopy(network).double()
    x, start = (tensor(photo, 48, 64, seed=s).double() for s in (0, 1))
    points, weights = np.polynomial.legendre.leggauss(steps)
    mean = sum(
        w / 2 * gradient(model, start + (p + 1) / 2 * (x - start))
        for p, w in zip(points, weights, strict=True)
    )
    wanted = ((x - start).numpy() * mean)[0].sum(0)
    found = input_methods.integrated(objective_of(model), x, start, steps)
    # Captum keeps its weights in float32.
    np.testing.assert_allclose(found, wanted, atol=1e-6 * np.abs(wanted).max())


def test_smoothgrad_is_the_size_of_captums_mean(network, photo, monkeypatch):
    x = tensor(photo, 64, 64)
    generator = torch.Generator().manual_seed(7)
    found = input_methods.smoothgrad(objective_of(network), x, 11, 0.2, generator)
    # Captum draws from the global generator: hand it the same numbers.
    noise = torch.Generator().manual_seed(7)
    drawn = torch.cat([torch.randn((n, 3, 64, 64), generator=noise) for n in (8, 3)])
    monkeypatch.setattr(torch, "normal", lambda mean, stdev: mean + stdev * drawn)
    f = objective_of(network)
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(f))
    deviation = 0.2 * float(x.max() - x.min())
    wanted = tunnel.attribute(x, nt_samples=11, stdevs=deviation, abs=False)
    np.testing.assert_allclose(found, wanted[0].abs().amax(0), rtol=1e-3, atol=1e-7)


def test_gradient_shap_is_the_formula(network, photo):
    x = tensor(photo, 48, 64)
    baselines = [tensor(photo, 48, 64, seed=s) for s in range(1, 12)]
    found, objective = input_methods.gradient_shap(
        objective_of(network),
        x,
        iter(baselines).__next__,
        11,
        0.1,
        torch.Generator().manual_seed(3),
    )
    generator = torch.Generator().manual_seed(3)
    values, remaining = [], list(baselines)
    for n in (8, 3):
        noise = 0.1 * float(x.max() - x.min()) * torch.randn((n, 3, 48, 64), generator=generator)
        for i, share in enumerate(torch.rand((n, 1, 1, 1), generator=generator)):
            start, end = remaining.pop(0), x + noise[i]
            values.append((end - start).numpy() * gradient(network, start + share * (end - start)))
    wanted = np.mean(values, axis=0)[0].sum(0)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    with torch.no_grad():
        each = [float(objective_of(network)(b)) for b in baselines]
    assert float(objective) == pytest.approx(np.mean(each), rel=1e-4)


def test_gradient_shap_of_a_linear_model_is_complete():
    weight = torch.randn(1, 3, 8, 8)
    x, start = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    found, objective = input_methods.gradient_shap(
        lambda p: (p * weight).flatten(1).sum(1), x, lambda: start, 5, 0.0, torch.Generator()
    )
    np.testing.assert_allclose(found, ((x - start) * weight)[0].sum(0), atol=1e-5)
    assert float(found.sum()) == pytest.approx(float((x * weight).sum() - objective), abs=1e-4)


def test_guided_backprop_is_the_gradient_without_relu(no_relu, photo, provenance):
    x = tensor(photo, 64, 64)
    found = input_methods.guided_backprop(explained(no_relu), x)
    wanted = np.abs(gradient(no_relu, x))[0].max(0)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-8)
    result = explain(no_relu, photo(), CLASSES, "guided_backprop", provenance=provenance)
    assert "only the gradient" in result.note


def test_guided_backprop_differs_from_the_gradient_with_relu(network, photo, provenance):
    x = tensor(photo, 64, 64)
    found = input_methods.guided_backprop(explained(network), x)
    plain = np.abs(gradient(network, x))[0].max(0)
    assert np.abs(found.numpy() - plain).max() > 0.01 * plain.max()
    result = explain(network, photo(), CLASSES, "guided_backprop", provenance=provenance)
    assert "with ReLU modules: 3, 4." in result.note


def test_guided_backprop_of_a_small_network_by_hand():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 2, 1, bias=False), torch.nn.ReLU(), torch.nn.Flatten()
    )
    head = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]).view(2, 3, 1, 1))
        head.weight.copy_(torch.tensor([[2.0, -3.0]]))
    x = torch.ones(1, 3, 1, 1)
    # Gradient: 2 and -3; the negative one is not passed back.
    assert input_methods.guided_backprop(torch.nn.Sequential(net, head), x).item() == 2.0
    assert input_methods.saliency(torch.nn.Sequential(net, head), x).item() == 3.0


# Occlusion


def test_occlusion_is_the_mean_difference_of_the_squares_on_a_pixel(network, photo):
    x, baseline = tensor(photo, 48, 64), tensor(photo, 48, 64, seed=1)
    found = input_methods.occlusion(objective_of(network), x, baseline, 20, 12)
    total, count = np.zeros((48, 64)), np.zeros((48, 64))
    f = objective_of(network)
    with torch.no_grad():
        for top in (0, 12, 24, 36):  # the last squares are cut off by the edge
            for left in (0, 12, 24, 36, 48):
                inside = np.s_[top : top + 20, left : left + 20]
                covered = x.clone()
                covered[(..., *inside)] = baseline[(..., *inside)]
                total[inside] += float(f(x) - f(covered))
                count[inside] += 1
    np.testing.assert_allclose(found, total / count, atol=1e-6)


def test_occlusion_finds_the_pixels_that_a_model_looks_at():
    x, baseline = torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    found = input_methods.occlusion(lambda p: p[:, :, 2, 5].sum(1), x, baseline, 2, 2)
    wanted = np.zeros((8, 8))
    wanted[2:4, 4:6] = 3.0
    np.testing.assert_allclose(found, wanted)


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [(65, 8, "does not fit a photo whose shorter side has 64 px"), (8, 9, "a shift of 9 px")],
)
def test_squares_that_cannot_cover_the_photo_are_refused(
    network, photo, provenance, window, stride, message
):
    given = {"window": window, "stride": stride}
    with pytest.raises(BadInputError, match=message):
        explain(network, photo(), CLASSES, "occlusion", parameters=given, provenance=provenance)


@pytest.mark.parametrize(
    ("size", "pieces"), [((64, 64), 4), ((70, 99), 3)], ids=["16 steps", "30 steps with pads"]
)
def test_occlusion_by_disjoint_runs_is_captums_feature_ablation(network, photo, size, pieces):
    x, baseline = tensor(photo, *size), tensor(photo, *size, seed=1)
    found, stride = input_methods.occlusion_scan(explained(network), x, baseline, 2, pieces, "none")
    rows, columns = found.shape
    index = scan_order("es2d:step=2", rows, columns).index
    features = np.full((rows, columns), -1)
    for k, sequence in enumerate(index):
        for piece, steps in enumerate(np.split(np.arange(len(sequence)), pieces)):
            for token in sequence[steps]:
                if token >= 0:
                    features[divmod(int(token), columns)] = pieces * k + piece
    mask = np.full(size, features.max() + 1)  # pixels beyond the last token: a feature of their own
    whole = features.repeat(stride, 0).repeat(stride, 1)[: size[0], : size[1]]
    mask[: whole.shape[0], : whole.shape[1]] = whole
    wanted = captum.attr.FeatureAblation(objective_of(network)).attribute(
        x, baselines=baseline, feature_mask=torch.from_numpy(mask)[None, None]
    )[0, 0]
    assert stride == 8 and found.shape == (-(-(size[0] // 4) // 2), -(-(size[1] // 4) // 2))
    np.testing.assert_allclose(found, wanted[::stride, ::stride][:rows, :columns], atol=1e-6)


@pytest.mark.parametrize("overlap", ["none", "half"])
def test_occlusion_by_runs_that_share_tokens_is_their_mean(network, photo, overlap):
    model = models.with_scan(network, "ss2d")
    x, baseline = tensor(photo, 32, 48), tensor(photo, 32, 48, seed=1)
    found, _ = input_methods.occlusion_scan(explained(model), x, baseline, 1, 2, overlap)
    f = objective_of(model)
    index = scan_order("ss2d", 8, 12).index
    starts = {"none": (0, 48), "half": (0, 24, 48)}[overlap]
    differences: list[list[float]] = [[] for _ in range(96)]
    with torch.no_grad():
        for sequence in index:
            for start in starts:
                covered, run = x.clone(), sequence[start : start + 48]
                for token in run:
                    y, column = divmod(int(token), 12)
                    cell = np.s_[..., 4 * y : 4 * y + 4, 4 * column : 4 * column + 4]
                    covered[cell] = baseline[cell]
                difference = float(f(x) - f(covered))
                for token in run:
                    differences[token].append(difference)
    wanted = np.reshape([np.mean(d) for d in differences], (8, 12))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("spec", ["es2d:step=2", "es2d:step=3", "ss2d"])
@pytest.mark.parametrize("pieces", [1, 5, 256])
@pytest.mark.parametrize("overlap", ["none", "half"])
def test_runs_read_what_the_order_reads(spec, pieces, overlap):
    index = scan_order(spec, 7, 10).index
    runs = scan_runs(index, pieces, overlap)
    assert set(np.concatenate(runs)) == set(range(70))
    if overlap == "none":
        per_sequence = sum(len(np.unique(s[s >= 0])) for s in index)
        assert sum(map(len, runs)) == per_sequence
        assert len(runs) <= pieces * len(index)


def test_a_stage_without_scan_is_named(network, photo, provenance):
    with pytest.raises(BadInputError, match=r"Stage 3 .* has no scan .* Choose stage 1 or 2"):
        explain(
            network,
            photo(),
            CLASSES,
            "occlusion_scan",
            parameters={"stage": 3},
            provenance=provenance,
        )


# Baselines


def test_baselines_are_what_their_names_say(photo):
    x = tensor(photo, 40, 64)
    mean, std = (
        np.array(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    made = {
        kind: make_baseline(x, kind, torch.Generator().manual_seed(0))[0].numpy()
        for kind in BASELINES
    }
    assert all(values.shape == (3, 40, 64) for values in made.values())
    np.testing.assert_allclose(made["black"] * std + mean, 0, atol=1e-6)
    np.testing.assert_allclose(made["mean"] * std + mean, np.broadcast_to(mean, (3, 40, 64)))
    noise = made["noise"] * std + mean
    assert noise.min() >= -1e-6 and noise.max() <= 1 + 1e-6
    assert abs(noise.mean() - 0.5) < 0.02 and abs(noise.std() - 12**-0.5) < 0.02
    with pytest.raises(BadInputError, match="no baseline 'white'"):
        make_baseline(x, "white", torch.Generator())


def test_blur_is_a_gaussian_with_its_edges_repeated(photo):
    x = tensor(photo, 40, 64)
    found = make_baseline(x, "blur", torch.Generator())[0].numpy()
    offsets = np.arange(-12, 13)
    weights = np.exp(-0.5 * (offsets / 4.0) ** 2)
    weights /= weights.sum()
    for y, column in [(0, 0), (20, 30), (39, 5)]:
        rows, columns = (y + offsets).clip(0, 39), (column + offsets).clip(0, 63)
        for c in range(3):
            patch = x[0, c].numpy()[np.ix_(rows, columns)]
            assert found[c, y, column] == pytest.approx(weights @ patch @ weights, abs=1e-5)
    flat = torch.full((1, 3, 33, 50), 1.5)
    np.testing.assert_allclose(make_baseline(flat, "blur", torch.Generator()), flat, rtol=1e-5)


# explain


@pytest.mark.parametrize("method", [name for name in METHODS if name != "lrp"])
def test_every_method_keeps_its_promises(network, photo, provenance, method):
    run = {
        "target": TARGET,
        "contrast": OTHER,
        "parameters": QUICK.get(method),
        "provenance": provenance,
    }
    entry = METHODS[method]
    found = explain(network, photo(64, 96), CLASSES, method, **run)
    again = explain(network, photo(64, 96), CLASSES, method, **run)
    for a, b in zip(found.maps, again.maps, strict=True):
        assert a.values.tobytes() == b.values.tobytes() and a.values.dtype == np.float32
    with torch.no_grad():
        logits = network(tensor(photo, 64, 96))[0]
    assert found.objective == pytest.approx(float(logits[TARGET] - logits[OTHER]), abs=1e-5)
    assert (found.target_name, found.contrast_name) == ("class 3", "class 5")
    assert found.is_signed or all(m.values.min() >= 0 for m in found.maps)
    assert any(m.values.any() for m in found.maps)
    names = ["stage1", "stage2", "stage3", "stage4"] if entry.where == "stage" else ["input"]
    assert [m.name for m in found.maps] == names
    for m in found.maps:
        assert m.values.shape == (64 // m.stride, 96 // m.stride)
    assert len(found.gaps) == (len(found.maps) if entry.promises_completeness else 0)
    assert bool(found.verdict) == entry.promises_completeness
    has_baseline = "baseline" in [f.name for f in entry.fields]
    assert bool(found.baseline) == has_baseline == (not np.isnan(found.baseline_objective))
    assert found.provenance.parameters["method"] == method
    assert found.provenance.parameters["target"] == TARGET
    assert {f.name for f in entry.fields} <= set(found.provenance.parameters)
    assert "difference of the two logits" in found.provenance.definition


def test_lrp_is_dispatched(network, photo, provenance):
    found = explain(network, photo(), CLASSES, "lrp", target=TARGET, provenance=provenance)
    assert found.method == "lrp" and "input" in [m.name for m in found.maps]


@pytest.mark.parametrize("method", ["gradient_shap", "smoothgrad", "integrated_gradients"])
def test_the_seed_decides_what_is_drawn(network, photo, provenance, method):
    given = {**QUICK[method]} | ({} if method == "smoothgrad" else {"baseline": "noise"})
    maps = [
        explain(
            network, photo(), CLASSES, method, parameters=given, provenance=provenance, seed=seed
        )
        .maps[0]
        .values
        for seed in (0, 0, 1)
    ]
    assert maps[0].tobytes() == maps[1].tobytes() != maps[2].tobytes()


def test_integrated_gradients_are_complete_and_say_so(network, photo, provenance):
    verdicts = []
    for steps in (1, 64):
        found = explain(
            network,
            photo(),
            CLASSES,
            "integrated_gradients",
            target=TARGET,
            contrast=OTHER,
            parameters={"steps": steps, "baseline": "black"},
            provenance=provenance,
        )
        expected = found.objective - found.baseline_objective
        assert found.gaps[0] == pytest.approx(found.maps[0].values.sum() - expected, abs=1e-5)
        verdicts.append((abs(found.gaps[0]) / abs(expected), found.verdict))
    assert verdicts[1][0] < 0.02 and verdicts[1][1].startswith("Complete: ")
    for gap, words in verdicts:
        assert words.startswith("Complete: " if gap <= 0.05 else "Not complete: ")


@pytest.mark.parametrize(
    ("gaps", "expected", "words"),
    [
        ((0.1,), 2.0, "Complete: the sum misses the difference to the baseline, 2, by 0.1 (5.0%)"),
        ((0.0, -0.5), -2.0, "Not complete: the sum misses the difference to the baseline, -2, "),
        ((0.0, -0.5), -2.0, "by 0.5 (25%). Use more steps (now 4) or another baseline."),
        ((0.0,), 0.0, "Complete: photo and baseline have the same objective"),
        ((0.5,), 0.0, "Not complete: the sum misses the difference to the baseline, 0, by 0.5."),
    ],
)
def test_the_verdict_says_what_the_gap_means(gaps, expected, words):
    method = METHODS["integrated_gradients"]
    assert words in completeness_verdict(method, gaps, expected, {"steps": 4})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": 10}, "Class 10 does not exist: this model knows 10 classes, 0 to 9"),
        ({"target": -1}, "Class -1 does not exist"),
        ({"contrast": 10}, "Class 10 does not exist"),
        ({"target": 2, "contrast": 2}, "cannot be compared with itself"),
        ({"method": "conductance", "parameters": {"steps": 0}}, "steps is '0'"),
        ({"method": "deep_lift"}, "not offered. DeepLift needs a rule"),
        ({"method": "nothing"}, "no attribution method 'nothing'"),
    ],
)
def test_bad_input_is_named(network, photo, provenance, given, message):
    with pytest.raises(BadInputError) as caught:
        explain(network, photo(), CLASSES, provenance=provenance, **given)
    assert message in str(caught.value)


def test_other_networks_are_named(network, photo, provenance):
    with pytest.raises(BadInputError, match="Conv2d is another network"):
        explain(torch.nn.Conv2d(3, 10, 3), photo(), CLASSES, provenance=provenance)
    headless = models.create_model("efficientvmamba_test", num_classes=0).eval()
    with pytest.raises(BadInputError, match="no head"):
        explain(headless, photo(), (), provenance=provenance)
    with pytest.raises(BadInputError, match="9 class names .* 10 classes"):
        explain(network, photo(), CLASSES[:9], provenance=provenance)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "lrp"])
def test_weights_that_are_not_finite_are_named(fresh_network, photo, provenance, method):
    with torch.no_grad():
        fresh_network.layers[1].blocks[0].norm.bias[2] = float("nan")
    with pytest.raises(BadInputError, match=r"'layers\.1\.blocks\.0\.norm\.bias'"):
        explain(fresh_network, photo(), CLASSES, method, provenance=provenance)


def test_gradients_that_overflow_are_named(fresh_network, photo, provenance):
    """Finite logits whose gradient is not: the squared weights of the last linear maps."""
    with torch.no_grad():
        fresh_network.classifier.head.weight[TARGET] = 1e38
        fresh_network.classifier.norm.weight.fill_(1e3)
        fresh_network.classifier.head.weight[TARGET, 1::2] = -1e38
        fresh_network.classifier.norm.bias.zero_()
    with pytest.raises(BadInputError, match="every weight is finite: the numbers overflow"):
        explain(fresh_network, photo(), CLASSES, "saliency", target=TARGET, provenance=provenance)


class StopsAt(CancelToken):
    """Cancelled at its n-th check."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.cancel()
        super().check()


def test_runs_stopped_anywhere_leave_no_hook_and_the_same_prediction(
    network, photo, provenance, n_hooks
):
    image = photo(32, 32)
    draw = random.Random(0)
    names = [name for name in METHODS if name != "lrp"]
    n_stopped = 0
    with torch.no_grad():
        before = network(tensor(photo, 32, 32))
    for _ in range(100):
        method = draw.choice(names)
        given = {**QUICK.get(method, {})} | ({"window": 16} if method == "occlusion" else {})
        try:
            explain(
                network,
                image,
                CLASSES,
                method,
                parameters=given,
                provenance=provenance,
                token=StopsAt(draw.randrange(6)),
            )
        except CancelledError:
            n_stopped += 1
        assert n_hooks(network) == 0
    assert 30 < n_stopped < 100
    with torch.no_grad():
        assert network(tensor(photo, 32, 32)).equal(before)
    assert all(p.grad is None for p in network.parameters())
