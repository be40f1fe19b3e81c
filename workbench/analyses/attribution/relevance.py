"""LRP for this network: relevance by the rules of MambaLRP, extended to ES2D and gates.

The network is run once more with every coefficient that its nonlinearities and its selection choose
held at the value it has for this photo. What is left is linear in the input and in the network's
constants, so that gradient x input is the relevance and nothing but the constants' part is lost:

    objective = sum of relevance + bias share        (Euler's theorem; `gaps` is the difference)

Rules, each a way to write the same value with another gradient (s' is s held constant):

- activations (SiLU, GELU, ReLU): `f(x) = x (f(x) / x)'`; a unit at 0 has no relevance to pass on
- selective scan: dt, B and C held, so that it is linear in what it reads
- product of two streams, `y * SiLU(z)`: half to each, `(a b' + a' b) / 2`
- gate, `v * sigmoid(s) = v / 2 + v * tanh(s / 2) / 2`: the first term is linear in v, the second a
  product of two streams. So a gate gets relevance only as far as it differs from the constant 1/2
  that it is without any input, and no relevance is lost to that constant.
- LayerNorm: standard deviation held, the mean's subtraction is linear; BatchNorm is affine
- convolution, linear, mean, padding, sums: linear as they are (LRP-0)

Constants: the biases of convolutions, linear maps and norms, and BatchNorm's running means. The
bias that dt reads is a coefficient of the scan and takes nothing. Their share is the gradient at
each constant times the constant, which is not used to make the maps.

MambaLRP: Jafari et al., https://arxiv.org/abs/2406.07592. LRP-0: Bach et al. 2015.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import scan_order, selective_scan
from kernels.reference import gather_tokens, put_back
from models import EfficientVMamba, with_scan
from models.layers import (
    ES2D,
    ChannelGate,
    EVSSBlock,
    InvertedResidual,
    PatchMerging,
    Scan2d,
    SqueezeExcite,
    to_nchw,
    to_nhwc,
)
from workbench.analyses.attribution.targets import Target, resolve_target, target_fields
from workbench.analyses.checks import explain_non_finite
from workbench.errors import BadInputError
from workbench.progress import CancelToken
from workbench.results import AttributionMap, MapsResult, Provenance

# The linearised network computes the same logits in another order; relative to the largest logit.
MAX_VALUE_ERROR = 1e-4
# A sum is called conserved when it is off by less than this share of all that was added up.
MAX_GAP = 1e-4
# A bias share above this part of the objective is pointed out.
LARGE_BIAS_SHARE = 0.25


def relevance(
    model: Any,
    image: np.ndarray,
    classes: Sequence[str],
    *,
    target: int | None = None,
    contrast: int | None = None,
    provenance: Provenance,
    token: CancelToken | None = None,
) -> MapsResult:
    """Relevance of each pixel and of each stage's tokens, for one normalised image `[3, H, W]`.

    `target` None: the most probable class.
    """
    started = time.perf_counter()
    if not isinstance(model, EfficientVMamba):
        raise BadInputError(
            f"LRP has rules for the modules of EfficientVMamba; {type(model).__name__} is another "
            "network. Choose a method that needs gradients only, such as integrated gradients."
        )
    twin = with_scan(model, model.scan_spec).eval()
    weight = next(twin.parameters())
    pixels = torch.tensor(image)[None].to(weight.device, weight.dtype)
    if token is not None:
        token.check()
    with torch.no_grad():
        logits = twin(pixels)[0]
    chosen = resolve_target(logits, target, contrast)
    _check_finite(model, logits)
    with torch.enable_grad():
        run = LinearisedNetwork(twin, token)
        linearised = run(pixels.requires_grad_(True))[0]
        _check_value(linearised.detach(), logits)
        objective = chosen.of(linearised[None])[0]
        if token is not None:
            token.check()
        layers = [pixels, *run.stages]
        gradients = torch.autograd.grad(objective, [*layers, *run.constants.found])
    _check_finite(model, *gradients)
    parts = [(g * a.detach()).double()[0] for g, a in zip(gradients, layers, strict=False)]
    shares = [
        (g * c.detach()).double()
        for g, c in zip(gradients[len(layers) :], run.constants.found, strict=True)
    ]
    return _result(run, chosen, logits, classes, parts, shares, provenance, started)


def definition_of(target: Target) -> str:
    return (
        f"LRP of the {target.words}: gradient x input of the network with activations' ratios, "
        "norms' deviations and the scan's dt, B, C held and products halved; summed over channels"
    )


def _check_finite(model: nn.Module, *tensors: Tensor) -> None:
    if not all(torch.isfinite(t).all() for t in tensors):
        raise BadInputError(explain_non_finite(model, "the relevance"))


def _check_value(linearised: Tensor, logits: Tensor) -> None:
    """The rules may change gradients only, never a value."""
    difference, size = float((linearised - logits).abs().max()), float(logits.abs().max())
    if difference > MAX_VALUE_ERROR * size:
        raise RuntimeError(
            f"the linearised network's logits differ from the model's by {difference:.3g} "
            f"(largest logit {size:.3g})"
        )


def _result(
    run: LinearisedNetwork,
    chosen: Target,
    logits: Tensor,
    classes: Sequence[str],
    parts: Sequence[Tensor],  # relevance of the image [3, H, W], then of each stage [H, W, C]
    shares: Sequence[Tensor],  # relevance of each constant
    provenance: Provenance,
    started: float,
) -> MapsResult:
    fields = target_fields(chosen, logits, classes)
    totals = [float(share.sum()) for share in shares]
    after = [math.fsum(totals[n:]) for n in (*run.n_constants, 0)]
    # The stages first, as in the network's own order of depth; the input last.
    ordered = [*parts[1:], parts[0]]
    gaps = [
        float(part.sum()) + bias - fields["objective"]
        for part, bias in zip(ordered, after, strict=True)
    ]
    size = float(parts[0].abs().sum()) + sum(float(share.abs().sum()) for share in shares)
    summed = float(parts[0].sum())
    return MapsResult(
        provenance=replace(
            provenance,
            definition=definition_of(chosen),
            parameters={
                **provenance.parameters,
                "method": "lrp",
                "target": chosen.index,
                "contrast": chosen.contrast,
            },
            seconds=time.perf_counter() - started,
        ),
        method="lrp",
        label="LRP",
        where="input",
        **fields,
        is_signed=True,
        maps=(*_stage_maps(run.model, parts[1:]), _input_map(parts[0])),
        baseline="",
        baseline_objective=math.nan,
        bias_share=after[-1],
        gaps=tuple(gaps),
        verdict=_verdict(chosen, summed, after[-1], fields["objective"], gaps, size),
        note=_note(chosen, after[-1], fields["objective"]),
    )


def _stage_maps(model: EfficientVMamba, parts: Sequence[Tensor]) -> list[AttributionMap]:
    maps = []
    for stage, (part, info) in enumerate(zip(parts, model.feature_info, strict=True), start=1):
        height, width, channels = part.shape
        where = " before patch merging" if stage < len(parts) else ""
        maps.append(
            AttributionMap(
                name=f"stage{stage}",
                values=part.sum(-1).float().cpu().numpy(),
                stride=info["reduction"],
                layer=f"output of stage {stage}{where} ({height} x {width} tokens, "
                f"{channels} channels)",
            )
        )
    return maps


def _input_map(part: Tensor) -> AttributionMap:
    _, height, width = part.shape
    values = part.sum(0).float().cpu().numpy()
    return AttributionMap(
        name="input",
        values=values,
        stride=1,
        layer=f"normalised input ({height} x {width} px, summed over RGB)",
    )


def _verdict(
    target: Target,
    summed: float,
    bias_share: float,
    objective: float,
    gaps: Sequence[float],
    size: float,
) -> str:
    worst = max(gaps, key=abs)
    added = (
        f"pixels {summed:.4g} + biases {bias_share:.4g}, {target.words} {objective:.4g}; "
        f"off by at most {abs(worst):.1g} on any of the maps"
    )
    if abs(worst) <= MAX_GAP * size:
        return f"Conserved: {added}."
    return (
        f"Not conserved: {added}. Relevance that cancels is too large for this precision "
        f"({size:.3g} were added up): read the map's pattern, not its sums."
    )


def _note(target: Target, bias_share: float, objective: float) -> str:
    note = (
        "Relevance is counted from an input of 0, the mean colour of ImageNet: a pixel of that "
        "colour gets none."
    )
    if abs(bias_share) <= LARGE_BIAS_SHARE * abs(objective):
        return note
    return (
        f"The network's constants (biases, running means) took {bias_share:.3g} of the "
        f"{target.words} of {objective:.3g}: that part belongs to no pixel. {note}"
    )


class LinearisedNetwork:
    """An EfficientVMamba as a map that is linear in the image and in the network's constants.

    Values are those of the model in eval mode; the gradient times a tensor is its relevance. It
    reads the model's weights and changes nothing on the model.
    """

    def __init__(self, model: EfficientVMamba, token: CancelToken | None = None) -> None:
        self.model = model
        self.rules = Rules()
        self.constants = self.rules.constants
        self.stages: list[Tensor] = []  # outputs before patch merging, [1, H, W, C]
        self.n_constants: list[int] = []  # constants met before the end of each stage
        self._token = token

    def __call__(self, x: Tensor) -> Tensor:
        """`[1, 3, H, W]` -> logits `[1, n]`."""
        run = self.rules
        embed = self.model.patch_embed
        x = run(embed["2"], to_nhwc(run(embed["0"], x)))
        for stage in self.model.stages():
            for _, block in stage.named_blocks():
                if self._token is not None:
                    self._token.check()
                x = run(block, x)
            self.stages.append(x)
            self.n_constants.append(len(self.constants.found))
            merging = stage.merging()
            x = x if merging is None else run(merging, x)
        x = run(self.model.classifier.norm, x).mean((1, 2))
        return run(self.model.classifier.head, x)


@dataclass
class Constants:
    """Every constant that the linearised network adds, as a leaf that collects a gradient."""

    found: list[Tensor] = field(default_factory=list)

    def add(self, y: Tensor, constant: Tensor | None) -> Tensor:
        """`y + constant`, the constant already in a shape that fits."""
        if constant is None:
            return y
        leaf = constant.detach().clone().requires_grad_(True)
        self.found.append(leaf)
        return y + leaf


class Rules:
    """Runs a module by the rule for its type."""

    def __init__(self) -> None:
        self.constants = Constants()

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        for kind in type(module).__mro__:
            if kind in RULES:
                return RULES[kind](self, module, x)
        raise BadInputError(
            f"LRP has no rule for {type(module).__name__}. It has rules for "
            f"{', '.join(sorted(kind.__name__ for kind in RULES))} and what derives from them. "
            "Choose a method that needs gradients only, such as integrated gradients."
        )


# What a rule is made of


def held_ratio(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`f(x)` as `x (f(x) / x)'`, for a function with f(0) = 0."""
    held = x.detach()
    is_zero = held == 0
    return x * torch.where(is_zero, 0, function(held) / torch.where(is_zero, 1, held))


def half_each(a: Tensor, b: Tensor) -> Tensor:
    """`a * b`, of whose relevance either factor gets half."""
    return (a * b.detach() + a.detach() * b) / 2


def gated(v: Tensor, s: Tensor) -> Tensor:
    """`v * sigmoid(s)`: the constant half of the gate is a factor of v alone."""
    return v / 2 + half_each(v, held_ratio(lambda t: torch.tanh(t / 2) / 2, s))


# A rule for each type of module: (rules, module, input) -> output


def _sequence(run: Rules, m: Any, x: Tensor) -> Tensor:
    for part in m:
        x = run(part, x)
    return x


def _identity(run: Rules, m: Any, x: Tensor) -> Tensor:
    return x


def _activation(run: Rules, m: Any, x: Tensor) -> Tensor:
    # A copy for the module: it may work in place.
    return held_ratio(lambda t: m(t.clone()), x)


def _linear(run: Rules, m: Any, x: Tensor) -> Tensor:
    return run.constants.add(F.linear(x, m.weight.detach()), m.bias)


def _convolution(run: Rules, m: Any, x: Tensor) -> Tensor:
    y = F.conv2d(x, m.weight.detach(), None, m.stride, m.padding, m.dilation, m.groups)
    return run.constants.add(y, None if m.bias is None else m.bias.view(-1, 1, 1))


def _layer_norm(run: Rules, m: Any, x: Tensor) -> Tensor:  # [..., C]
    held = x.detach()
    scale = torch.rsqrt(held.var(-1, unbiased=False, keepdim=True) + m.eps) * m.weight.detach()
    return run.constants.add((x - x.mean(-1, keepdim=True)) * scale, m.bias)


def _batch_norm(run: Rules, m: Any, x: Tensor) -> Tensor:  # [B, C, H, W]
    scale = m.weight.detach() * torch.rsqrt(m.running_var + m.eps)
    y = run.constants.add(x, -m.running_mean.view(-1, 1, 1))
    return run.constants.add(y * scale.view(-1, 1, 1), m.bias.view(-1, 1, 1))


def _mixer(run: Rules, m: Any, x: Tensor) -> Tensor:
    u, z = run(m.in_proj, x).chunk(2, dim=-1)
    u = held_ratio(F.silu, run(m.conv2d, to_nchw(u)))
    y = run(m.out_norm, to_nhwc(linear_scan(m, u)))
    return run(m.out_proj, half_each(y, held_ratio(F.silu, z)))


def linear_scan(op: ES2D, u: Tensor) -> Tensor:
    """The scan of `op` on `u` `[1, C, H, W]` with dt, B and C held: linear in u.

    Written with the one-dimensional operator, for which dt, B and C are inputs of their own.
    """
    if not isinstance(op.scan, Scan2d):
        raise BadInputError(
            f"LRP has no rule for the scan {type(op.scan).__name__}; it has one for Scan2d. "
            "Choose a method that needs gradients only, such as integrated gradients."
        )
    order = scan_order(op.scan.spec, *u.shape[2:])
    sets = torch.from_numpy(order.parameter_set.copy()).to(u.device)
    n_sets, rank = op.x_proj_weight.shape[0], op.dt_projs_weight.shape[2]
    n_states = op.A_logs.shape[1]
    tokens = gather_tokens(u, order)  # [1, K, C, L]
    with torch.no_grad():
        projected = torch.einsum("bkcl,kpc->bkpl", tokens, op.x_proj_weight[sets])
        dt, B, C = projected.split([rank, n_states, n_states], dim=2)
        delta = torch.einsum("bkrl,kcr->bkcl", dt, op.dt_projs_weight[sets])
        A = -torch.exp(op.A_logs).view(n_sets, -1, n_states)[sets]
        D = op.Ds.view(n_sets, -1)[sets]
        bias = op.dt_projs_bias[sets]
    y = selective_scan(
        tokens.flatten(1, 2),
        delta.flatten(1, 2),
        A.flatten(0, 1),
        B.contiguous(),
        C.contiguous(),
        D.flatten(),
        bias.flatten(),
        delta_softplus=True,
        backend=op.scan.backend,
    )
    return put_back(y.view_as(tokens), order)


def _channel_gate(run: Rules, m: Any, v: Tensor) -> Tensor:  # [B, H, W, C]
    pooled = run(m.norm, v).mean((1, 2), keepdim=True)
    reduced = held_ratio(F.gelu, run(m.global_reduce, pooled))
    return gated(v, run(m.channel_select, reduced))


def _squeeze_excite(run: Rules, m: Any, v: Tensor) -> Tensor:  # [B, C, H, W]
    pooled = v.mean((2, 3), keepdim=True)
    return gated(v, run(m.conv_expand, held_ratio(F.relu, run(m.conv_reduce, pooled))))


def _evss_block(run: Rules, m: Any, x: Tensor) -> Tensor:
    n = run(m.norm, x)
    paths = [run(m.op, n)]
    if m.conv_branch is not None:
        paths.append(to_nhwc(run(m.conv_branch, to_nchw(n))))
    for path in paths:
        x = x + (path if m.se is None else run(m.se, path))
    return x


def _inverted_residual(run: Rules, m: Any, x: Tensor) -> Tensor:
    v = to_nchw(x)
    for part in (m.conv_pw, m.conv_dw, m.se, m.conv_pw2):
        v = run(part, v)
    return x + to_nhwc(v)


def _patch_merging(run: Rules, m: Any, x: Tensor) -> Tensor:
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    cells = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return run(m.reduction, run(m.norm, torch.cat(cells, dim=-1)))


RULES: dict[type[nn.Module], Callable[[Rules, Any, Tensor], Tensor]] = {
    nn.Sequential: _sequence,
    nn.Identity: _identity,
    nn.ReLU: _activation,
    nn.GELU: _activation,
    nn.SiLU: _activation,
    nn.Hardswish: _activation,
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.LayerNorm: _layer_norm,
    nn.BatchNorm2d: _batch_norm,
    ES2D: _mixer,
    ChannelGate: _channel_gate,
    SqueezeExcite: _squeeze_excite,
    EVSSBlock: _evss_block,
    InvertedResidual: _inverted_residual,
    PatchMerging: _patch_merging,
}
