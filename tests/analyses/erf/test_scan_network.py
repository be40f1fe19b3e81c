"""Our network as the receptive-field analysis sees it: values are the running network's, gradients
take the ways that are asked for."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import models
from models.layers import SqueezeExcite
from workbench.analyses.networks import PATHS
from workbench.analyses.scan_network import ScanNetwork
from workbench.errors import BadInputError


@pytest.fixture
def pixels(photo):
    def make(*shape, seed=0, n=2):
        return torch.from_numpy(np.stack([photo(*shape, seed=seed + i) for i in range(n)]))

    return make


def with_gates_at(model: models.EfficientVMamba, images: torch.Tensor) -> models.EfficientVMamba:
    """The model whose gates are the constants that they are for `images`."""
    twin = models.with_scan(model, model.scan_spec)
    seen: list[torch.Tensor] = []

    def keep(module, inputs, _):
        seen.append(module.gate(inputs[0]).detach())

    gates = [module for module in model.modules() if hasattr(module, "gate")]
    handles = [gate.register_forward_hook(keep) for gate in gates]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    values = iter(seen)

    class Constant(torch.nn.Module):
        def forward(self, v):
            return v * next(values)

    for module in list(twin.modules()):
        if hasattr(module, "se") and module.se is not None:
            constant = Constant()
            # Watched, so that the block calls it instead of its parts.
            constant.register_forward_hook(lambda *_: None)
            if isinstance(module.se, SqueezeExcite):
                module.forward = inverted(module, constant)
            module._modules["se"] = constant
    return twin


def inverted(block, constant):
    def forward(x):
        v = constant(block.conv_dw(block.conv_pw(x.permute(0, 3, 1, 2))))
        return x + block.conv_pw2(v).permute(0, 2, 3, 1)

    return forward


def gradient(features: torch.Tensor, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Of a random linear objective."""
    weights = torch.from_numpy(np.random.default_rng(seed).standard_normal(features.shape)).float()
    (found,) = torch.autograd.grad((features * weights).sum(), images, retain_graph=True)
    return found


@pytest.mark.parametrize("shape", [(64, 64), (72, 104)])
@pytest.mark.parametrize("gates", ["live", "frozen"])
def test_values_are_those_of_the_running_network(network, pixels, shape, gates):
    images = pixels(*shape)
    with torch.no_grad():
        wanted = network.forward_intermediates(images, intermediates_only=True)
    found = ScanNetwork(network, "test").features(
        images, [f"stage{i}" for i in (1, 2, 3, 4)], gates
    )
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_blocks_are_those_of_the_running_network(network, pixels):
    wrapped = ScanNetwork(network, "test")
    seen = {}
    handles = [
        network.get_submodule(info.name).register_forward_hook(
            lambda _, __, output, info=info: seen.setdefault((info.stage, info.block), output)
        )
        for info in network.blocks()
    ]
    images = pixels(64, 96)
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    names = [unit.name for unit in wrapped.units() if unit.block and not unit.path]
    with torch.no_grad():
        found = wrapped.features(images, names)
    for (_, output), mine in zip(sorted(seen.items()), found, strict=True):
        torch.testing.assert_close(mine, output.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)


def test_units_are_listed_stages_first(network):
    units = ScanNetwork(network, "test").units()
    names = [unit.name for unit in units]
    assert names[:4] == ["stage1", "stage2", "stage3", "stage4"]
    assert names[4:9] == [f"stage{b.stage}.block{b.block}" for b in network.blocks()]
    of_first = [name for name in names if name.startswith("stage1.block1.")]
    assert of_first == [f"stage1.block1.{path}" for path in PATHS]
    assert not any(name.startswith("stage3.") and name.endswith(".scan") for name in names)
    assert next(u for u in units if u.name == "stage1.block1.conv").label == (
        "stage 1, block 1, convolution path"
    )


@pytest.mark.parametrize(
    ("options", "missing"),
    [({"conv_branch": False}, ["conv"]), ({"se": False}, ["gate"])],
    ids=["no convolution branch", "no gates"],
)
def test_a_block_lacks_the_paths_of_an_ablation(pixels, options, missing):
    torch.manual_seed(0)
    model = models.EfficientVMamba((16, 32, 64, 128), (1, 1, 1, 1), 10, **options).eval()
    wrapped = ScanNetwork(model, "ablation")
    names = {unit.name for unit in wrapped.units()}
    for path in PATHS:
        assert (f"stage1.block1.{path}" in names) == (path not in missing)
    with torch.no_grad():
        (wanted,) = model.forward_intermediates(
            pixels(), indices=[0], intermediates_only=True, stop_early=True
        )
        (found,) = wrapped.features(pixels(), ["stage1.block1.scan"])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(BadInputError, match="no unit 'stage1.block1"):
        wrapped.features(pixels(), [f"stage1.block1.{missing[0]}"])


def test_a_network_without_gates_says_so():
    torch.manual_seed(0)
    model = models.EfficientVMamba(
        (16, 32, 64, 128), (1, 1, 1, 1), 10, se=False, evss_stages=(1, 2, 3, 4)
    )
    assert not ScanNetwork(model.eval(), "ablation").has_gates


@pytest.mark.parametrize(
    "place", ["stage1.block1", "stage2.block1", "stage3.block2", "stage4.block1"]
)
@pytest.mark.parametrize("gates", ["live", "frozen"])
def test_gradients_of_the_paths_add_up_to_the_block_s(gated, pixels, place, gates):
    images = pixels(64, 96, n=1).requires_grad_(True)
    paths = [
        unit.name
        for unit in gated.units()
        if unit.name.startswith(place + ".") and not (gates == "frozen" and unit.path == "gate")
    ]
    whole, *parts = gated.features(images, [place, *paths], gates)
    wanted = gradient(whole, images)
    found = []
    for part in parts:
        torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-5)
        found.append(gradient(part, images))
    torch.testing.assert_close(sum(found), wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max())
    assert all(g.abs().max() > 1e-3 * wanted.abs().max() for g in found), "a path carries nothing"


def test_a_path_alone_equals_the_block_with_the_others_cut(network, pixels):
    """The convolution path, written out from the block's modules."""
    images = pixels(64, 64, n=1).requires_grad_(True)
    wrapped = ScanNetwork(network, "test")
    block = network.get_submodule("layers.0.blocks.0")
    stem = network.stem(images)
    conv = block.conv_branch(block.norm(stem).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    wanted = gradient((conv * block.se.gate(conv).detach()).permute(0, 3, 1, 2), images)
    (features,) = wrapped.features(images, ["stage1.block1.conv"])
    torch.testing.assert_close(gradient(features, images), wanted)
    (features,) = wrapped.features(images, ["stage1.block1.residual"])
    torch.testing.assert_close(
        gradient(features, images), gradient(stem.permute(0, 3, 1, 2), images)
    )


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_frozen_gates_are_constants(gated, pixels, stage):
    """The gradient is that of a network whose gates are the numbers they were for this image."""
    images = pixels(64, 64, n=1).requires_grad_(True)
    constant = with_gates_at(gated.model, images.detach())
    (frozen,) = gated.features(images, [f"stage{stage}"], "frozen")
    (live,) = gated.features(images, [f"stage{stage}"], "live")
    wanted = constant.forward_intermediates(images, intermediates_only=True)[stage - 1]
    torch.testing.assert_close(frozen, wanted, rtol=1e-4, atol=1e-4)
    mine, theirs = gradient(frozen, images), gradient(wanted, images)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max())
    difference = (gradient(live, images) - theirs).norm() / theirs.norm()
    assert difference > 1e-3, "the gates of this network do not matter: the test shows nothing"


def test_a_frozen_gate_passes_nothing(network, pixels):
    with pytest.raises(BadInputError, match="frozen nothing passes through a gate"):
        ScanNetwork(network, "test").features(pixels(), ["stage1.block1.gate"], "frozen")


def test_it_stops_after_the_deepest_unit(fresh_network, pixels):
    with torch.no_grad():
        for parameter in fresh_network.layers[2].get_submodule("2").parameters():
            parameter.fill_(float("nan"))
    wrapped = ScanNetwork(fresh_network, "test")
    found = wrapped.features(pixels(), ["stage3.block1.conv", "stage2"])
    assert all(torch.isfinite(f).all() for f in found)
    assert [f.shape[1] for f in found] == [64, 32]
    assert not torch.isfinite(wrapped.features(pixels(), ["stage3"])[0]).all()


def test_the_model_is_left_as_it_was(network, pixels, n_hooks):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    hooks = n_hooks(network)
    names = [unit.name for unit in ScanNetwork(network, "test").units()]
    ScanNetwork(network, "test").features(pixels(), names)
    assert n_hooks(network) == hooks and torch.is_grad_enabled()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_threads_may_share_it(network, pixels):
    wrapped = ScanNetwork(network, "test")
    names = ["stage1.block1.scan", "stage2"]
    alone = [wrapped.features(pixels(seed=i), names) for i in range(4)]
    found: dict[int, list[torch.Tensor]] = {}

    def work(i: int) -> None:
        found[i] = wrapped.features(pixels(seed=i), names, "frozen" if i % 2 else "live")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        for mine, wanted in zip(found[i], alone[i], strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "stage", "wanted"),
    [((64, 96), 2, (8, 12, 8)), ((70, 101), 1, (17, 25, 4)), ((70, 101), 4, (3, 4, 32))],
)
def test_grid_is_the_map_of_the_features(network, pixels, shape, stage, wanted):
    wrapped = ScanNetwork(network, "test")
    grid = wrapped.grid(f"stage{stage}", *shape)
    assert (grid.rows, grid.columns, grid.stride) == wanted
    (features,) = wrapped.features(pixels(*shape), [f"stage{stage}"])
    assert features.shape[2:] == wanted[:2]
    half = grid.stride / 2
    assert grid.centre(1, 0) == (half + grid.stride, half)


def test_the_centre_of_a_token_is_that_of_its_patch(network):
    """With the residual path alone a token of stage 1 sees its own patch."""
    wrapped = ScanNetwork(network, "test")
    images = torch.zeros(1, 3, 64, 64).normal_().requires_grad_(True)
    (features,) = wrapped.features(images, ["stage1.block1.residual"])
    (seen,) = torch.autograd.grad(features[0, :5, 3, 5].sum(), images)
    rows, columns = np.nonzero(seen[0].abs().sum(0).numpy())
    middle = wrapped.grid("stage1", 64, 64).centre(3, 5)
    assert middle == ((rows.min() + rows.max() + 1) / 2, (columns.min() + columns.max() + 1) / 2)


def test_too_small_an_input_is_refused(network):
    with pytest.raises(BadInputError, match="31 x 64 px. test needs 32 px or more"):
        ScanNetwork(network, "test").grid("stage1", 31, 64)
