"""EfficientVMamba: stem, four stages, head; features and heads as timm's models offer them.

Input `[B, 3, H, W]`: RGB in [0, 1], minus mean, over std, normalised outside the model. Feature
maps are `[B, H, W, C]`. Stages 1-2 are EVSS blocks (scan and convolution side by side), stages 3-4
inverted residuals.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kernels import ScanSpec
from models.initial_weights import init_weights
from models.layers import (
    EVSSBlock,
    EVSSStage,
    InvertedResidual,
    InvertedStage,
    Norm,
    PatchConv,
    PatchMerging,
    Scan2d,
    Stage,
    to_nhwc,
)

MIN_SIZE = 32  # input pixels: the last stage then has one token
PATCH = 4
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DEFAULT_SCAN = "es2d"
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsInfo:
    """Where a model's weights come from, in a form that can stand under a picture."""

    name: str  # "random", the shipped entry's name, or the path or hf: name as given
    description: str  # "random, seed 0", "Imagenette, trained with ss2d, top-1 90.1 % at 224 px"
    trained_scan: str | None = None  # ScanSpec text; None where unknown or random
    n_classes: int = 0
    sha256: str = ""  # of the file; for random weights of the tensors
    top1: float | None = None  # per cent on the validation set the description names
    classes: tuple[str, ...] | None = None  # names in index order
    is_random: bool = False
    details: tuple[str, ...] = ()  # what the loader did: entry read, prefix removed, parts left out


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """One block of the network, counted from 1 as users count."""

    stage: int
    block: int
    name: str  # module path: "layers.0.blocks.1"
    kind: str  # "evss" | "inverted residual"
    has_scan: bool


class Classifier(nn.Module):
    """Head: norm, mean over the map, linear."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = Norm(dim)
        self.head: nn.Module = make_head(dim, num_classes)


class EfficientVMamba(nn.Module):
    """The network of the paper. `registry.create_model` builds the released sizes.

    `dims` and `depths` give channels and blocks of the four stages. `conv_branch`, `se` and
    `evss_stages` (which stages, from 1, are EVSS) are the paper's ablations.
    """

    def __init__(
        self,
        dims: Sequence[int] = (48, 96, 192, 384),
        depths: Sequence[int] = (2, 2, 4, 2),
        num_classes: int = 1000,
        scan: str | ScanSpec = DEFAULT_SCAN,
        backend: str = "auto",
        drop_path_rate: float = 0.0,
        conv_branch: bool = True,
        se: bool = True,
        evss_stages: Sequence[int] = (1, 2),
        in_chans: int = 3,
        img_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        _check_options(in_chans, drop_path_rate, evss_stages, len(dims))
        del img_size  # any size runs; the name is accepted because timm's callers pass it
        spec = ScanSpec.of(scan)
        spec.check_runnable()
        self.dims = tuple(dims)
        self.depths = tuple(depths)
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = dims[-1]
        self.evss_stages = tuple(sorted(evss_stages))
        # timm's two names for one dictionary: input size, mean, std, name of the head
        self.pretrained_cfg: dict[str, Any] = {}
        self.default_cfg = self.pretrained_cfg
        self.weights_info = WeightsInfo(name="random", description="random", is_random=True)
        # Places 0, 1, 2 as in the authors' list; place 1 only changes the layout there.
        self.patch_embed = nn.ModuleDict(
            {
                "0": PatchConv(3, dims[0], PATCH),
                "2": Norm(dims[0]),
            }
        )
        n_blocks = sum(depths)
        rates = [drop_path_rate * i / max(n_blocks - 1, 1) for i in range(n_blocks)]
        stages: list[nn.Module] = []
        for index, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            own, rates = rates[:depth], rates[depth:]
            downsample = PatchMerging(dim) if index + 1 < len(dims) else None
            if index + 1 in self.evss_stages:
                evss = [EVSSBlock(dim, spec, backend, rate, conv_branch, se) for rate in own]
                stages.append(EVSSStage(evss, downsample))
            else:
                stages.append(InvertedStage([InvertedResidual(dim, r) for r in own], downsample))
        self.layers = nn.ModuleList(stages)
        self.classifier = Classifier(dims[-1], num_classes)
        for block in self.blocks():
            for name, parameter in self.get_submodule(block.name).named_parameters():
                if name.endswith(("A_logs", "Ds")):
                    parameter._no_weight_decay = True  # type: ignore[attr-defined]
        if self.classifier.norm.weight.device.type != "meta":
            init_weights(self, int(torch.randint(2**31, ())))

    # What the network consists of

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """As timm: channels, stride in input pixels and module path of each stage's output."""
        infos = []
        for stage, dim in enumerate(self.dims, start=1):
            last = [b.name for b in self.blocks() if b.stage == stage][-1]
            reduction = PATCH * 2 ** (stage - 1)
            infos.append(
                {"num_chs": dim, "reduction": reduction, "module": last, "index": stage - 1}
            )
        return infos

    @property
    def scan_spec(self) -> ScanSpec:
        """The scheme that the scans of this model run."""
        return get_scan(self)

    @property
    def backend(self) -> str:
        """The kernel backend as asked for ("auto" chooses for each device)."""
        return next(m.backend for m in self.modules() if isinstance(m, Scan2d))

    def blocks(self) -> list[BlockInfo]:
        """Every block in the order in which it runs."""
        found = []
        for index, stage in enumerate(self.stages()):
            for number, (name, block) in enumerate(stage.named_blocks(), start=1):
                is_evss = isinstance(block, EVSSBlock)
                kind = "evss" if is_evss else "inverted residual"
                path = f"layers.{index}.{name}"
                found.append(BlockInfo(index + 1, number, path, kind, is_evss))
        return found

    def no_weight_decay(self) -> set[str]:
        """Parameters that an optimiser must not decay; timm's `param_groups_weight_decay` asks."""
        return {n for n, _ in self.named_parameters() if n.endswith(("A_logs", "Ds"))}

    def get_classifier(self) -> nn.Module:
        return self.classifier.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new random head of `num_classes` on; 0 leaves the pooled features as they are."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool={global_pool!r}: this network pools by 'avg' only")
        like = self.classifier.norm.weight
        self.num_classes = num_classes
        self.classifier.head = make_head(self.num_features, num_classes).to(like)
        self.weights_info = replace(
            self.weights_info,
            n_classes=num_classes,
            classes=None,
            details=(*self.weights_info.details, f"new random head for {num_classes} classes"),
        )

    def stages(self) -> Iterator[Stage]:
        """The four stages, each with its blocks and the patch merging after them."""
        for stage in self.layers:
            assert isinstance(stage, Stage)
            yield stage

    # Running it

    def stem(self, x: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> `[B, H//4, W//4, C]`."""
        return self.patch_embed["2"](to_nhwc(self.patch_embed["0"](x)))

    def forward_stages(self, x: Tensor, n_stages: int) -> Iterator[Tensor]:
        """Outputs of the first `n_stages` stages before patch merging, `[B, H, W, C]` each."""
        self._check_input(x)
        x = self.stem(x)
        for index, stage in enumerate(self.stages(), start=1):
            output, x = stage(x)
            yield output
            if index == n_stages:
                return

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage after the final norm, `[B, H, W, C]`."""
        last = x
        for last in self.forward_stages(x, len(self.dims)):  # noqa: B007
            pass
        return self.classifier.norm(last)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Normed features `[B, H, W, C]` -> logits `[B, n]` (or pooled features `[B, C]`)."""
        x = x.mean((1, 2))
        return x if pre_logits else self.classifier.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Stage outputs before patch merging, as timm's models give them.

        `indices`: stages from 0 (an int n: the last n; None: all). `norm` puts the final norm on
        stage 4, the only one it fits. Returns the list, or with `intermediates_only=False` (last
        features, list).
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt={output_fmt!r}: allowed are 'NCHW' and 'NHWC'")
        take = take_indices(len(self.dims), indices)
        n_stages = max(take) + 1 if stop_early else len(self.dims)
        found: dict[int, Tensor] = {}
        last = x
        for index, last in enumerate(self.forward_stages(x, n_stages)):
            if index in take:
                is_normed = norm and index + 1 == len(self.dims)
                y = self.classifier.norm(last) if is_normed else last
                found[index] = y if output_fmt == "NHWC" else y.permute(0, 3, 1, 2)
        intermediates = [found[index] for index in take]
        if intermediates_only:
            return intermediates
        is_last = n_stages == len(self.dims)
        return (self.classifier.norm(last) if is_last else last), intermediates

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """As timm: drop the stages after the last one asked for, and the head."""
        take = take_indices(len(self.dims), indices)
        kept = max(take) + 1
        if prune_head:
            self.reset_classifier(0)
        if prune_norm or kept < len(self.dims):
            self.classifier.norm = nn.Identity()  # type: ignore[assignment]
        self.layers = self.layers[:kept]
        self.dims, self.depths = self.dims[:kept], self.depths[:kept]
        return take

    def _check_input(self, x: Tensor) -> None:
        shape = tuple(x.shape)
        if x.dim() != 4:
            raise ValueError(
                f"images have shape {shape}; expected 4 dimensions [batch, 3, height, width]; "
                "for one image add the batch dimension with x.unsqueeze(0)"
            )
        if x.shape[1] != 3:
            hint = "; it looks channels-last: use x.permute(0, 3, 1, 2)" if shape[3] == 3 else ""
            raise ValueError(f"images have {shape[1]} channels; expected 3 (RGB){hint}")
        if min(shape[2:]) < MIN_SIZE:
            raise ValueError(
                f"images are {shape[2]} x {shape[3]} px; both sides must be at least "
                f"{MIN_SIZE} px; resize them first"
            )
        weight = self.patch_embed["0"].weight
        if not x.is_floating_point():
            raise TypeError(
                f"images have dtype {x.dtype}; expected {weight.dtype}: divide by 255, subtract "
                "the ImageNet mean and divide by its std first (model.default_cfg has both)"
            )
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(
                f"images have dtype {x.dtype} but the model's parameters are {weight.dtype}; "
                f"convert one of them, e.g. images.to({weight.dtype})"
            )
        if x.device != weight.device:
            raise ValueError(
                f"images are on {x.device} but the model is on {weight.device}; "
                f"move one of them, e.g. images.to({str(weight.device)!r})"
            )


# Scan scheme of a model


def get_scan(model: nn.Module) -> ScanSpec:
    """The scheme that `model`'s scans run."""
    for module in model.modules():
        if isinstance(module, Scan2d):
            return module.spec
    raise ValueError(
        f"{type(model).__name__} has no scan: nothing to read; use a model with EVSS blocks"
    )


def set_scan(model: M, scan: str | ScanSpec, **params: Any) -> M:
    """Change the scheme of `model` in place, for its owner; `with_scan` leaves it untouched."""
    get_scan(model)
    spec = ScanSpec.of(scan, **params)
    spec.check_runnable()
    for module in model.modules():
        if isinstance(module, Scan2d):
            module.spec = spec
    return model


def with_scan(model: M, scan: str | ScanSpec, **params: Any) -> M:
    """A second model that runs `scan` on the same parameters and buffers; `model` is untouched.

    Hooks are not taken along. Training mode, scheme and head can then differ between the two;
    weights cannot.
    """
    return set_scan(_twin(model, {}), scan, **params)


def _twin(module: M, seen: dict[int, nn.Module]) -> M:
    """A copy of the module tree that has the original's tensors (the same dictionaries)."""
    if id(module) in seen:
        return seen[id(module)]  # type: ignore[return-value]
    twin = copy.copy(module)
    seen[id(module)] = twin
    for name, value in module.__dict__.items():
        if "hook" in name and isinstance(value, dict):
            twin.__dict__[name] = type(value)()
    twin._modules = {
        name: None if child is None else _twin(child, seen)
        for name, child in module._modules.items()
    }
    return twin


def make_head(dim: int, num_classes: int) -> nn.Module:
    """The linear head, filled from torch's global generator; for 0 classes the identity."""
    if num_classes < 0:
        raise ValueError(f"num_classes={num_classes}: must be 0 (no head) or more")
    if num_classes == 0:
        return nn.Identity()
    head = nn.Linear(dim, num_classes)
    if head.weight.device.type != "meta":
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
    return head


def take_indices(n: int, indices: int | Sequence[int] | None) -> list[int]:
    """Stage numbers from 0, in the order asked; negative ones count from the end."""
    if indices is None:
        return list(range(n))
    if isinstance(indices, int):
        if not 1 <= indices <= n:
            raise ValueError(f"indices={indices}: a number asks for the last n stages, 1 to {n}")
        return list(range(n - indices, n))
    if not indices:
        raise ValueError(f"indices is empty; name stages 0 to {n - 1}")
    for index in indices:
        if not -n <= index < n:
            raise ValueError(
                f"indices={list(indices)}: {index} is not a stage; allowed are 0 to {n - 1}"
            )
    return [index % n for index in indices]


def _check_options(
    in_chans: int, drop_path_rate: float, evss_stages: Sequence[int], n_stages: int
) -> None:
    if in_chans != 3:
        raise ValueError(f"in_chans={in_chans}: this network takes 3 (RGB)")
    if not 0.0 <= drop_path_rate < 1.0:
        raise ValueError(f"drop_path_rate={drop_path_rate}: must be at least 0 and below 1")
    wrong = [s for s in evss_stages if s not in range(1, n_stages + 1)]
    if wrong or not evss_stages:
        raise ValueError(
            f"evss_stages={tuple(evss_stages)}: name one or more of 1 to {n_stages}, e.g. (1, 2)"
        )
