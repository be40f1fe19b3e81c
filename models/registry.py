"""The released sizes by name, `create_model`, the weights that ship, registration with timm."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kernels import ScanSpec, backends
from models.checkpoints import Checkpoint, CheckpointError, load_into, read_checkpoint
from models.efficientvmamba import (
    DEFAULT_SCAN,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MIN_SIZE,
    EfficientVMamba,
    WeightsInfo,
)
from models.initial_weights import init_weights

WEIGHTS_DIR = Path(__file__).parent / "weights"
DEFAULT_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One size of the network."""

    name: str
    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    description: str


def _spec(size: str, width: int, depths: tuple[int, int, int, int], description: str) -> ModelSpec:
    dims = (width, 2 * width, 4 * width, 8 * width)
    return ModelSpec(f"efficientvmamba_{size}", dims, depths, description)


SPECS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        _spec("tiny", 48, (2, 2, 4, 2), "EfficientVMamba-T of the paper"),
        _spec("small", 64, (2, 2, 4, 2), "EfficientVMamba-S of the paper"),
        _spec("base", 96, (2, 2, 9, 2), "EfficientVMamba-B of the paper"),
        _spec("test", 16, (1, 1, 2, 1), "the same structure, small enough for tests"),
    )
}


def list_models() -> list[str]:
    """Names that `create_model` takes."""
    return list(SPECS)


def model_spec(name: str) -> ModelSpec:
    """Dimensions of a model by name."""
    if name not in SPECS:
        raise ValueError(f"unknown model {name!r}; known are {', '.join(SPECS)}")
    return SPECS[name]


def create_model(
    name: str,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    scan: str | ScanSpec = DEFAULT_SCAN,
    backend: str = "auto",
    seed: int = 0,
    reset_head: bool = False,
    *,
    drop_path_rate: float = 0.0,
    conv_branch: bool = True,
    se: bool = True,
    evss_stages: Sequence[int] = (1, 2),
) -> EfficientVMamba:
    """A model by name, in training mode as torch makes them.

    `weights`: None (random by `seed`; global generator untouched) | "default" or a name (those
    that ship, by scan) | path | path#entry | "hf:Org/Repo[@revision][:file][#entry]".
    `num_classes=None` takes the file's head (1000 without a file); another number than the file's
    is an error unless `reset_head`, which puts a new random head on. `conv_branch=False`,
    `se=False` (the gates of the EVSS blocks) and `evss_stages=(3, 4)` are the paper's ablations.
    The weights' origin is in `model.weights_info`.
    """
    spec = model_spec(name)
    if backend not in ("auto", *backends()):
        raise ValueError(f"unknown backend {backend!r}; known are auto, {', '.join(backends())}")
    scan = ScanSpec.of(scan)
    checkpoint = None if weights is None else _read(name, str(weights), scan)
    n_classes = _n_classes(checkpoint, num_classes, reset_head)
    # Built without memory and filled afterwards: no time for, and no trace in, torch's global
    # generator.
    with torch.device("meta"):
        model = EfficientVMamba(
            spec.dims,
            spec.depths,
            n_classes,
            scan,
            backend,
            drop_path_rate,
            conv_branch,
            se,
            evss_stages,
        )
    model.to_empty(device="cpu")
    is_complete = checkpoint is not None and not reset_head
    if not is_complete:
        init_weights(model, seed)
    if checkpoint is None:
        model.weights_info = WeightsInfo(
            name="random",
            description=f"random, seed {seed}",
            n_classes=n_classes,
            sha256=tensors_sha256(model),
            is_random=True,
        )
    else:
        model.weights_info = load_into(model, checkpoint, new_head=reset_head, known=_known_shapes)
    model.default_cfg = model.pretrained_cfg = _timm_cfg(name, model)
    return model


def available_weights(name: str) -> list[WeightsInfo]:
    """The trained weights that ship for a model, the default one of each scan first."""
    model_spec(name)
    found = []
    for card in sorted(WEIGHTS_DIR.glob("*.json")):
        facts = json.loads(card.read_text(encoding="utf-8"))
        if facts["model"] == name and card.with_suffix(".safetensors").is_file():
            found.append(_info_of_card(card.stem, facts))
    return sorted(found, key=lambda w: (w.trained_scan != str(ScanSpec.of(DEFAULT_SCAN)), w.name))


def shipped_path(name: str) -> Path:
    """The file of an entry of `available_weights`, by the entry's name."""
    return WEIGHTS_DIR / f"{name}.safetensors"


def tensors_sha256(model: nn.Module) -> str:
    """Digest of all parameters and buffers, names and shapes included."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _read(name: str, weights: str, scan: ScanSpec) -> Checkpoint:
    shipped = available_weights(name)
    chosen = next((w for w in shipped if w.name == weights), None)
    if chosen is None and weights != "default":
        return read_checkpoint(weights)
    if not shipped:
        others = [f"{w.name} for {m}" for m in SPECS for w in available_weights(m)]
        raise CheckpointError(
            f"no trained weights ship for {name}; "
            f"shipped: {', '.join(others) if others else 'none in this version'}. "
            "Use weights=None for random ones, or give a path or 'hf:Org/Repo'"
        )
    if chosen is None:
        chosen = next((w for w in shipped if w.trained_scan == str(scan)), shipped[0])
    checkpoint = read_checkpoint(str(shipped_path(chosen.name)))
    return replace(checkpoint, info=replace(chosen, sha256=checkpoint.info.sha256))


def _info_of_card(entry: str, facts: dict[str, Any]) -> WeightsInfo:
    return WeightsInfo(
        name=entry,
        description=facts["description"],
        trained_scan=facts["scan"],
        n_classes=len(facts["classes"]),
        sha256=facts["sha256"],
        top1=facts["top1"],
        classes=tuple(facts["classes"]),
    )


def _n_classes(checkpoint: Checkpoint | None, asked: int | None, reset_head: bool) -> int:
    if checkpoint is None:
        return DEFAULT_CLASSES if asked is None else asked
    own = checkpoint.info.n_classes
    if reset_head:
        return asked if asked is not None else (own or DEFAULT_CLASSES)
    if asked is not None and asked != own:
        holds = f"has a head for {own} classes" if own else "has no head (0 classes)"
        raise CheckpointError(
            f"{checkpoint.info.name} {holds}, num_classes={asked} was asked for; leave num_classes "
            "out to take the file's, or pass reset_head=True for a new random head"
        )
    return own


def _known_shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Keys and shapes of every registered size, for saying which one a file fits."""
    shapes = {}
    for name, spec in SPECS.items():
        with torch.device("meta"):
            model = EfficientVMamba(spec.dims, spec.depths, 0)
        shapes[name] = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return shapes


# timm


def _timm_cfg(name: str, model: EfficientVMamba) -> dict[str, Any]:
    cfg = {
        "architecture": name,
        "num_classes": model.num_classes,
        "input_size": (3, 224, 224),
        "min_input_size": (3, MIN_SIZE, MIN_SIZE),
        "fixed_input_size": False,
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "first_conv": "patch_embed.0",
        "classifier": "classifier.head",
        "paper_ids": "arXiv:2403.09977",
    }
    if model.weights_info.classes is not None:
        cfg["label_names"] = model.weights_info.classes
    return cfg


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    """What `timm.create_model(name, ...)` calls; timm's own arguments in timm's meaning."""

    def build(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: str | None = None,
        features_only: bool = False,
        out_indices: Sequence[int] | None = None,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        img_size: int | tuple[int, int] | None = None,
        **options: Any,
    ) -> nn.Module:
        del pretrained_cfg, cache_dir, img_size  # nothing is downloaded, and any image size runs
        if in_chans != 3 or global_pool != "avg" or drop_rate != 0.0:
            raise ValueError(
                f"in_chans={in_chans}, global_pool={global_pool!r}, drop_rate={drop_rate}: this "
                "network takes 3 channels, pools by 'avg' and has no dropout (use drop_path_rate)"
            )
        if pretrained:
            options.setdefault("weights", (pretrained_cfg_overlay or {}).get("file", "default"))
            options.setdefault("reset_head", options.get("num_classes") is not None)
        # timm's users seed torch's global generator before they build a model.
        options.setdefault("seed", int(torch.randint(2**31, ())))
        model = create_model(name, **options)
        if not features_only:
            return model
        from timm.models._features import FeatureGetterNet

        return FeatureGetterNet(model, out_indices=tuple(out_indices or range(len(model.dims))))

    build.__name__ = build.__qualname__ = name
    build.__doc__ = SPECS[name].description
    return build


def register_with_timm() -> None:
    """Make `timm.create_model` know our names; called when `models` is imported."""
    from timm.models import register_model

    for name in SPECS:
        register_model(_entrypoint(name))
