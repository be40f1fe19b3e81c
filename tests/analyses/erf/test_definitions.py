"""Each definition against its anchor on the same images: OpenERF's package itself, RepLKNet's and
VMamba's written out from their definition with hooks, one image at a time."""

from __future__ import annotations

import numpy as np
import openerf
import pytest
import timm
import torch
from openerf.data import FlatImageDataset, build_timm_eval_transform
from openerf.metrics import compute_erf_metrics
from PIL import Image

from workbench.analyses.erf import DEFINITIONS, Target, fields
from workbench.analyses.networks import Grid, Unit
from workbench.analyses.scan_network import ScanNetwork
from workbench.bench_erf import AsMaps


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return timm.create_model("resnet18", pretrained=False).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four photos as files, as OpenERF wants them."""
    path = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(4):
        coarse = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((280, 260), Image.Resampling.BICUBIC)
        image.save(path / f"{i}.png")
    return path


class Maps:
    """The stages of a timm network that gives its maps as `[B, C, h, w]`."""

    label = "resnet18"
    has_gates = False

    def __init__(self, module):
        self.module = module

    def units(self):
        return tuple(Unit(f"stage{i}", f"stage {i}", i) for i in (1, 2, 3, 4))

    def grid(self, unit, height, width):
        stride = 2 ** (int(unit[-1]) + 1)
        return Grid(height // stride, width // stride, stride, (0.5, 0.5))

    def features(self, x, units, gates="live"):
        stages = [int(unit[-1]) for unit in units]
        found = self.module.forward_intermediates(
            x, indices=stages, intermediates_only=True, stop_early=True
        )
        return [dict(zip(sorted(set(stages)), found, strict=True))[stage] for stage in stages]

    def reach(self, unit, y, x, height, width):
        return None, ""


@pytest.mark.parametrize(("stage", "token"), [(2, 14), (4, 3)])
def test_openerf_is_reproduced(resnet, folder, provenance, stage, token):
    wanted = openerf.compute_erf(
        resnet, image_dir=folder, target_layer=f"layer{stage}", device="cpu", show_progress=False
    )
    transform, _ = build_timm_eval_transform(resnet)
    images = [(name, pixels.numpy()) for pixels, name in FlatImageDataset(folder, transform)]
    target = Target(f"stage{stage}", token, token)
    *_, (found,) = fields(
        Maps(resnet), images, [target], definition="openerf", provenance=provenance
    )
    assert found.mass.shape == wanted.erf_map.shape == (224, 224)
    largest = wanted.erf_map.max()
    np.testing.assert_allclose(found.mass, wanted.erf_map, rtol=1e-3, atol=1e-5 * largest)
    assert abs(found.mass - wanted.erf_map).sum() < 1e-5
    theirs = compute_erf_metrics(wanted.erf_map)
    # Their coordinates count pixels from 0, ours say where the pixel's middle is.
    assert found.metrics["com_y_px"] - 0.5 == pytest.approx(theirs["com_y"], abs=1e-3)
    assert found.metrics["com_x_px"] - 0.5 == pytest.approx(theirs["com_x"], abs=1e-3)
    peak = (found.metrics["peak_y_px"] - 0.5, found.metrics["peak_x_px"] - 0.5)
    assert peak == tuple(theirs["argmax_yx"])
    for radius, share in theirs["radial_cumulative_mass"].items():
        assert found.metrics[f"within{radius}"] == pytest.approx(share, abs=1e-5)


def raw_map(network, image: np.ndarray, stage: int) -> np.ndarray:
    """RepLKNet's map of one image, float64: its middle token, ReLU of the gradient, sum of RGB."""
    block = [b for b in network.blocks() if b.stage == stage][-1]
    seen = []
    handle = network.get_submodule(block.name).register_forward_hook(
        lambda _, __, o: seen.append(o)
    )
    pixels = torch.from_numpy(image)[None].requires_grad_(True)
    try:
        network(pixels)
    finally:
        handle.remove()
    rows, columns = seen[0].shape[1:3]
    total = 0.0
    for channel in range(seen[0].shape[3]):
        value = seen[0][0, rows // 2, columns // 2, channel]
        if value > 0:
            total = total + value
    total.backward()
    found = np.zeros(image.shape[1:])
    for colour in pixels.grad[0].double().numpy():
        found += np.where(colour > 0, colour, 0.0)
    return found


def rectangle(values: np.ndarray, threshold: float) -> float:
    """RepLKNet's area ratio by its loop; nan where it finds none."""
    height, width = values.shape
    for i in range(1, height // 2):
        part = values[height // 2 - i : height // 2 + 1 + i, width // 2 - i : width // 2 + 1 + i]
        if part.sum() / values.sum() > threshold:
            return (i * 2 + 1) / height * (i * 2 + 1) / width
    return np.nan


@pytest.mark.parametrize("stage", [2, 4])
@pytest.mark.parametrize("scale", [1.0, 1e4], ids=["as it is", "large gradients"])
def test_replknet_and_vmamba_are_reproduced(fresh_network, photo, provenance, stage, scale):
    with torch.no_grad():
        fresh_network.patch_embed["2"].weight.mul_(scale)
        fresh_network.patch_embed["2"].bias.mul_(scale)
    images = [(f"image {i}", photo(64, 64, seed=i)) for i in range(3)]
    broken = photo(64, 64, seed=3)
    broken[0, 3, 3] = np.nan
    averaged = np.mean([raw_map(fresh_network, image, stage) for _, image in images], axis=0)
    side = 64 // 2 ** (stage + 1) // 2
    for definition, transform in (
        ("replknet", lambda v: np.log10(v + 1)),
        ("vmamba", lambda v: v**0.2),
    ):
        *_, (found,) = fields(
            ScanNetwork(fresh_network, "Test"),
            [*images[:2], ("with NaN", broken), images[2]],
            [Target(f"stage{stage}", side, side)],
            definition=definition,
            provenance=provenance,
        )
        assert found.n_images == 3 and found.skipped[0].startswith("with NaN: NaN")
        raw = found.mass.astype(np.float64) * found.raw_sum
        np.testing.assert_allclose(raw, averaged, rtol=1e-3, atol=1e-5 * averaged.max())
        wanted = transform(averaged) / transform(averaged).max()
        np.testing.assert_allclose(DEFINITIONS[definition].shown(raw), wanted, atol=2e-3)
        for percent in (20, 30, 50, 99):
            square = rectangle(averaged, percent / 100)
            assert found.metrics[f"square{percent}"] == pytest.approx(square, nan_ok=True)
            named = rectangle(wanted, percent / 100)
            assert found.metrics[f"named{percent}"] == pytest.approx(named, nan_ok=True)


def test_only_ours_is_free_of_the_gradient_s_scale(provenance, photo):
    """The same field, gradients a thousand times as large: RepLKNet's number changes, ours does
    not."""

    class Scaled(Maps):
        def __init__(self, factor):
            super().__init__(torch.nn.Conv2d(3, 1, 31, padding=15))
            self.factor = factor
            bell = torch.exp(-((torch.arange(31.0) - 15) ** 2) / 32)
            with torch.no_grad():
                self.module.weight.copy_(torch.outer(bell, bell).expand(1, 3, 31, 31))
                self.module.bias.fill_(1e3)  # nothing is cut by the ReLU

        def grid(self, unit, height, width):
            return Grid(height, width, 1, (0.5, 0.5))

        def features(self, x, units, gates="live"):
            return [self.factor * self.module(x) for _ in units]

    images = [(str(i), photo(32, 32, seed=i)) for i in range(2)]
    named: dict[str, list[float]] = {}
    for definition in ("mass", "replknet"):
        for factor in (1.0, 1000.0):
            *_, (found,) = fields(
                Scaled(factor),
                images,
                [Target("stage1", 16, 16)],
                definition=definition,
                provenance=provenance,
            )
            named.setdefault(definition, []).append(found.metrics["named50"])
            named.setdefault(definition + " area", []).append(found.metrics["area50"])
    assert named["mass"][0] == named["mass"][1] and len(set(named["mass area"])) == 1
    assert named["replknet"][0] < named["replknet"][1]


def test_every_definition_says_its_five_parts():
    for key, definition in DEFINITIONS.items():
        assert definition.key == key and definition.source
        assert list(definition.parts) == [
            "objective",
            "rectification",
            "averaging",
            "transform",
            "metric",
        ]
        assert all(definition.parts.values()) and "\n" not in definition.line
    lines = [definition.line for definition in DEFINITIONS.values()]
    assert len(set(lines)) == 4


def test_order_of_mean_and_clamp_matters():
    """Colours of opposite sign cancel for OpenERF and do not for RepLKNet."""
    gradient = torch.tensor([1.0, -3.0, 0.5]).reshape(1, 3, 1, 1)
    assert DEFINITIONS["openerf"].rectification.of(gradient).item() == 0.0
    assert DEFINITIONS["replknet"].rectification.of(gradient).item() == 1.5
    assert DEFINITIONS["mass"].rectification.of(gradient).item() == 4.5


def test_openerf_is_reproduced_on_our_network(fresh_network, folder, provenance):
    """It cannot watch our channels-last stages itself; the benchmark's wrapper lets it."""
    watched = AsMaps(fresh_network)
    transform, _ = build_timm_eval_transform(watched)
    images = [(name, pixels.numpy()) for pixels, name in FlatImageDataset(folder, transform)][:2]
    targets = [Target(f"stage{stage}", *[224 // 2 ** (stage + 2)] * 2) for stage in (1, 4)]
    network = ScanNetwork(fresh_network, "Test")
    *_, found = fields(network, images, targets, definition="openerf", provenance=provenance)
    for result in found:
        wanted = openerf.compute_erf(
            watched,
            image_dir=folder,
            max_images=2,
            target_layer=f"layer{result.stage}",
            device="cpu",
            show_progress=False,
        )
        assert abs(result.mass - wanted.erf_map).sum() < 1e-5
