"""Fields of a network: what is averaged, what is left out, what is refused, and when it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import models
from workbench.analyses.erf import DEFINITIONS, Target, fields, input_gradients
from workbench.analyses.networks import Grid, Unit
from workbench.analyses.scan_network import ScanNetwork
from workbench.errors import BadInputError, CancelledError
from workbench.progress import CancelToken

ENGINE = "workbench.analyses.erf.engine"


@pytest.fixture
def net(network):
    return ScanNetwork(network, "Test")


@pytest.fixture
def images(photo):
    def make(n: int, height: int = 64, width: int = 96):
        return [(f"image {i}", photo(height, width, seed=i)) for i in range(n)]

    return make


@pytest.fixture
def every_batch(monkeypatch):
    """A result after every batch, however fast it was."""
    monkeypatch.setattr(f"{ENGINE}.SHOW_EVERY_S", 0.0)
    monkeypatch.setattr(f"{ENGINE}.SHARE", 0)


@pytest.fixture
def two_at_once(monkeypatch):
    monkeypatch.setattr(f"{ENGINE}.BATCH_PIXELS_CPU", 2 * 64 * 96)


class Broken(Sequence):
    """A folder in which some files cannot be read."""

    def __init__(self, images, broken, error=None):
        self.images, self.broken = images, broken
        self.error = error or OSError("cannot be read as an image")

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.broken:
            raise self.error
        return self.images[index]


@dataclass
class Linear:
    """A network whose gradient is known: one 1x1 convolution, each image's own scale in front."""

    label = "linear"
    has_gates = False

    def __post_init__(self):
        self.module = nn.Conv2d(3, 4, 1)
        with torch.no_grad():
            self.module.weight.fill_(0.5)
            self.module.bias.fill_(1.0)
        self.n_forward = 0

    def units(self):
        return (Unit("stage1", "stage 1", 1), Unit("stage2", "stage 2", 2))

    def grid(self, unit, height, width):
        return Grid(height, width, 1, (0.5, 0.5))

    def features(self, x, units, gates="live"):
        self.n_forward += 1
        near = self.module(x)
        wide = nn.functional.avg_pool2d(near, 3, 1, 1)
        return [near if unit == "stage1" else wide for unit in units]

    def reach(self, unit, y, x, height, width):
        return None, "not known here"


# Values


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_gradient_is_that_of_the_definition(net, network, photo, stage):
    image = torch.from_numpy(photo(72, 104))[None]
    pixels = image.clone().requires_grad_(True)
    feature = network.forward_intermediates(pixels, intermediates_only=True)[stage - 1]
    y, x = feature.shape[2] // 2, feature.shape[3] // 3
    objective = feature[0, :, y, x].clamp(min=0).sum()
    (wanted,) = torch.autograd.grad(objective, pixels)
    ((found, values),) = input_gradients(net, image, [Target(f"stage{stage}", y, x)])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(values, objective.detach()[None])


@pytest.mark.parametrize("spec", ["es2d:step=1", "es2d:step=3", "ss2d"])
def test_field_is_the_mean_of_normalised_maps(
    network, images, provenance, spec, every_batch, two_at_once
):
    model = ScanNetwork(models.with_scan(network, spec), "Test")
    target = Target("stage2", 3, 5)
    results = [r for (r,) in fields(model, images(4), [target], provenance=provenance)]
    assert [r.n_images for r in results] == [1, 3, 4], "the first picture comes after one image"
    assert [r.is_final for r in results] == [False, False, True]
    for result in results:
        wanted = np.zeros((64, 96))
        for _, image in images(result.n_images):
            ((one, _),) = input_gradients(model, torch.from_numpy(image)[None], [target])
            one = one[0].abs().sum(0).double().numpy()
            wanted += one / one.sum() / result.n_images
        np.testing.assert_allclose(result.mass, wanted, rtol=1e-4, atol=1e-9)
        assert result.mass.sum() == pytest.approx(1.0, abs=1e-5)
        assert result.radial_mass[-1] == pytest.approx(1.0, abs=1e-5)
    last = results[-1]
    assert last.image_names == tuple(name for name, _ in images(4))
    assert last.n_planned == 4 and last.skipped == ()
    assert (last.unit, last.stage, last.y, last.x) == ("stage2", 2, 3, 5)
    assert (last.rows, last.columns, last.stride) == (8, 12, 8)
    assert last.centre == (28.0, 44.0)
    assert last.provenance.parameters == {
        "unit": "stage2",
        "stage": 2,
        "y": 3,
        "x": 5,
        "erf_definition": "mass",
        "gates": "live",
        "n_images": 4,
    }


def test_several_targets_share_the_forward_pass(net, images, provenance, monkeypatch):
    targets = [Target("stage4", 1, 1), Target("stage1.block1.scan", 3, 4), Target("stage1", 2, 2)]
    n_passes = 0
    own = net.features

    def counted(*arguments):
        nonlocal n_passes
        n_passes += 1
        return own(*arguments)

    monkeypatch.setattr(net, "features", counted)
    *_, together = fields(net, images(2), targets, provenance=provenance)
    assert n_passes == 2, "one forward pass a batch: the first image, then the second"
    for target, result in zip(targets, together, strict=True):
        *_, (alone,) = fields(net, images(2), [target], provenance=provenance)
        assert result.unit == target.unit
        np.testing.assert_allclose(result.mass, alone.mass, rtol=1e-4, atol=1e-9)


def test_two_tokens_of_one_unit(net, images, provenance):
    targets = [Target("stage2", 3, 5), Target("stage2", 4, 5)]
    *_, (a, b) = fields(net, images(1), targets, provenance=provenance)
    assert (a.y, b.y) == (3, 4) and abs(a.mass - b.mass).sum() > 0.1


def test_frozen_gates_narrow_the_field(net, images, provenance):
    found = {}
    target = Target("stage1.block1", 8, 12)
    for gates in ("live", "frozen"):
        *_, (found[gates],) = fields(net, images(1), [target], gates=gates, provenance=provenance)
        assert found[gates].gates == gates
    assert found["live"].metrics["nonzero"] == 1.0, "a global mean reaches every pixel"
    assert found["frozen"].metrics["nonzero"] < 1.0
    seen = found["frozen"].mass > 0
    assert not (seen & ~found["frozen"].reach.astype(bool)).any(), "outside the exact reach"


def test_one_scan_reaches_only_what_lies_before(fresh_network, photo):
    """With step 1 and the other paths cut, no token sees rows below its convolution's reach."""
    block = fresh_network.get_submodule("layers.0.blocks.0")
    block.se = None  # its mean over the map would reach everything
    block.conv_branch = None
    model = ScanNetwork(models.with_scan(fresh_network, "es2d", step=1), "Test")
    image = torch.from_numpy(photo(64, 64))[None]
    ((field, _),) = input_gradients(model, image, [Target("stage1", 6, 6)])
    field = field[0].abs().sum(0)
    assert field[: 6 * 4].amax() > 0
    assert field[8 * 4 :].abs().max() == 0, (
        "row 7 is seen by the 3 x 3 convolution, row 8 by nobody"
    )


def test_only_the_stages_up_to_the_one_asked_for_run(fresh_network, photo):
    with torch.no_grad():
        for parameter in fresh_network.layers[2].parameters():
            parameter.fill_(float("nan"))
    image = torch.from_numpy(photo())[None]
    net = ScanNetwork(fresh_network, "Test")
    ((gradient, _),) = input_gradients(net, image, [Target("stage2", 4, 4)])
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("definition", list(DEFINITIONS))
def test_a_known_gradient(provenance, definition):
    """One pixel, the same from every image: all definitions agree on the mass."""
    net = Linear()
    images = [(str(i), np.full((3, 8, 8), i + 1.0, dtype=np.float32)) for i in range(3)]
    *_, (near, wide) = fields(
        net,
        images,
        [Target("stage1", 4, 4), Target("stage2", 4, 4)],
        definition=definition,
        provenance=provenance,
    )
    pixel, square = np.zeros((8, 8)), np.zeros((8, 8))
    pixel[4, 4], square[3:6, 3:6] = 1.0, 1 / 9
    np.testing.assert_allclose(near.mass, pixel, atol=1e-7)
    np.testing.assert_allclose(wide.mass, square, atol=1e-6)
    # ReLU sums: four channels of weight 0.5 over three colours; the channel mean: a quarter, a
    # third.
    raw = {"mass": 1.0, "openerf": 1.0, "replknet": 6.0, "vmamba": 6.0}[definition]
    assert near.raw_sum == pytest.approx(raw) and wide.raw_sum == pytest.approx(raw)
    assert near.reach.shape == (0, 0) and near.reach_note == "not known here"
    assert near.gates == "none"
    assert set(near.parts) == {"objective", "rectification", "averaging", "transform", "metric"}


# What is left out


def test_images_that_cannot_be_read_are_listed(net, images, provenance):
    readable = images(6)
    given = Broken(readable, {0, 3})
    target = Target("stage2", 3, 5)
    *_, (found,) = fields(net, given, [target], provenance=provenance)
    assert found.skipped == (
        "image 1: cannot be read as an image",
        "image 4: cannot be read as an image",
    )
    assert found.n_images == 4 and found.n_planned == 6
    rest = [readable[i] for i in (1, 2, 4, 5)]
    *_, (wanted,) = fields(net, rest, [target], provenance=provenance)
    np.testing.assert_allclose(found.mass, wanted.mass, rtol=1e-4, atol=1e-9)


def test_an_image_of_another_size_is_listed(net, images, provenance):
    given = [*images(2), *images(1, 72, 72)]
    *_, (found,) = fields(net, given, [Target("stage2", 3, 5)], provenance=provenance)
    assert found.skipped == ("image 0: 72 x 72 px, while the first image has 64 x 96",)
    assert found.n_images == 2


def test_if_no_image_can_be_read_it_is_an_error(net, images, provenance):
    given = Broken(images(3), {0, 1, 2}, BadInputError("No image."))
    with pytest.raises(BadInputError, match="None of the 3 images can be read. The first: No im"):
        next(fields(net, given, [Target("stage2", 3, 5)], provenance=provenance))


def test_an_image_without_any_gradient(provenance):
    """All features of the dark image are negative, so their ReLU moves with nothing."""
    net = Linear()
    given = [
        (name, np.full((3, 8, 8), value, dtype=np.float32))
        for name, value in (("light", 1.0), ("dark", -9.0), ("grey", 0.5))
    ]
    target = Target("stage1", 4, 4)
    *_, (ours,) = fields(net, given, [target], provenance=provenance)
    assert ours.skipped == ("dark: no gradient at all",) and ours.n_images == 2
    assert ours.image_names == ("light", "grey")
    *_, (raw,) = fields(net, given, [target], definition="replknet", provenance=provenance)
    assert raw.skipped == () and raw.n_images == 3
    assert raw.raw_sum == pytest.approx(6.0 * 2 / 3), "the mean of the raw maps counts it"
    assert "dark: no gradient at all, counted as zeros" in raw.note
    with pytest.raises(BadInputError, match="every gradient is zero.*Left out: dark"):
        list(fields(net, given[1:2], [target], provenance=provenance))


@pytest.mark.parametrize("definition", ["mass", "replknet"])
def test_an_image_with_nan_is_left_out(net, images, provenance, definition):
    given = images(3)
    given[1][1][0, 5, 5] = np.nan
    target = Target("stage2", 3, 5)
    *_, (found,) = fields(net, given, [target], definition=definition, provenance=provenance)
    assert len(found.skipped) == 1 and found.skipped[0].startswith("image 1: NaN or infinity")
    *_, (wanted,) = fields(
        net, [given[0], given[2]], [target], definition=definition, provenance=provenance
    )
    np.testing.assert_allclose(found.mass, wanted.mass, rtol=1e-4, atol=1e-9)
    with pytest.raises(BadInputError, match="every weight is finite"):
        list(fields(net, given[1:2], [target], definition=definition, provenance=provenance))


# What is refused


def test_nan_weights_are_named(fresh_network, images, provenance):
    with torch.no_grad():
        fresh_network.get_submodule("layers.1.blocks.0.op.out_proj").weight[3, 3] = float("nan")
    net = ScanNetwork(fresh_network, "Test")
    for definition in DEFINITIONS:
        with pytest.raises(BadInputError, match=r"1 such value\(s\) in 'layers.1.blocks.0.op.out_"):
            list(
                fields(
                    net,
                    images(1),
                    [Target("stage2", 4, 4)],
                    definition=definition,
                    provenance=provenance,
                )
            )


def test_a_field_that_is_empty_says_so(fresh_network, images, provenance):
    with torch.no_grad():
        fresh_network.patch_embed["0"].weight.zero_()
    net = ScanNetwork(fresh_network, "Test")
    for definition in DEFINITIONS:
        with pytest.raises(BadInputError, match="every gradient is zero"):
            target = Target("stage1", 4, 4)
            run = fields(net, images(2), [target], definition=definition, provenance=provenance)
            list(run)


def test_a_token_outside_the_map_is_refused(net, images, provenance):
    with pytest.raises(BadInputError, match="outside stage 4, which has 2 x 3 tokens"):
        list(fields(net, images(1), [Target("stage4", 2, 0)], provenance=provenance))


def test_an_unknown_unit_is_refused(net, images, provenance):
    with pytest.raises(BadInputError, match="no unit 'stage5'"):
        list(fields(net, images(1), [Target("stage5", 0, 0)], provenance=provenance))


def test_an_unknown_definition_is_refused(net, images, provenance):
    with pytest.raises(BadInputError, match="no definition 'captum'. Choose one of: mass, replk"):
        target = Target("stage1", 0, 0)
        list(fields(net, images(1), [target], definition="captum", provenance=provenance))


def test_no_images_is_refused(net, provenance):
    with pytest.raises(BadInputError, match="at least one"):
        list(fields(net, [], [Target("stage4", 0, 0)], provenance=provenance))


def test_images_smaller_than_the_stride_are_refused(net, images, provenance):
    with pytest.raises(BadInputError, match="16 x 96 px. Test needs 32 px or more"):
        list(fields(net, images(1, 16, 96), [Target("stage1", 0, 0)], provenance=provenance))


# Time and state


def test_cancelling_keeps_what_was_yielded(net, images, provenance, n_hooks):
    token = CancelToken()
    run = fields(net, images(20), [Target("stage2", 4, 4)], provenance=provenance, token=token)
    (first,) = next(run)
    assert first.n_images == 1 and first.mass.sum() == pytest.approx(1.0, abs=1e-5)
    token.cancel()
    with pytest.raises(CancelledError):
        next(run)
    assert n_hooks(net.model) == 0 and torch.is_grad_enabled()


def test_gradients_may_be_switched_off_outside(net, images, provenance):
    with torch.no_grad():
        *_, (found,) = fields(net, images(1), [Target("stage1", 2, 2)], provenance=provenance)
        assert not torch.is_grad_enabled()
    assert found.mass.sum() == pytest.approx(1.0, abs=1e-5)


def test_images_are_read_once_and_in_order(net, images, provenance):
    given = images(5)
    asked = []

    class Watched(Broken):
        def __getitem__(self, index):
            asked.append(index)
            return given[index]

    list(fields(net, Watched(given, ()), [Target("stage1", 2, 2)], provenance=provenance))
    assert asked == [0, 0, 1, 2, 3, 4], "the first one also says the size"


def test_running_results_are_not_made_faster_than_one_can_look(images, provenance, monkeypatch):
    monkeypatch.setattr(f"{ENGINE}.BATCH_PIXELS_CPU", 1)
    monkeypatch.setattr(f"{ENGINE}.SHOW_EVERY_S", 1e6)
    light = [(name, abs(image)) for name, image in images(9)]
    results = list(fields(Linear(), light, [Target("stage1", 2, 2)], provenance=provenance))
    assert [r.n_images for (r,) in results] == [1, 9]
