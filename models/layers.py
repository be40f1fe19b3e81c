"""The building blocks of EfficientVMamba, written on channels-last tensors.

Every block takes and returns `[B, H, W, C]` (contiguous); convolutions see the same memory as a
channels-last `[B, C, H, W]` view, so nothing is copied between linear maps, norms, convolutions and
the scan.

Parameter names and shapes are those of the authors' training code
(https://github.com/TerryPei/EfficientVMamba), so their checkpoints load strictly. Paper:
"EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba", https://arxiv.org/abs/2403.09977.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as all_modules

from kernels import ScanSpec, map_ops, scan2d

N_PARAMETER_SETS = 4  # the operator holds four groups of scan parameters, whatever the scan scheme
D_STATE = 16
NORM_EPS = 1e-5
CHUNK_BYTES = 8 << 20  # widest tensor of an EVSS block (2C channels) when images are run one by one


def to_nchw(x: Tensor) -> Tensor:
    """View `[B, H, W, C]` as `[B, C, H, W]` in channels-last memory; nothing is copied."""
    return x.permute(0, 3, 1, 2)


def to_nhwc(x: Tensor) -> Tensor:
    """Return `[B, C, H, W]` as contiguous `[B, H, W, C]`; a view if the memory is channels-last."""
    return x.permute(0, 2, 3, 1).contiguous()


class Norm(nn.LayerNorm):
    """LayerNorm over channels."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:  # [..., C]
        if map_ops.is_usable(x, self.weight, self.bias):
            return map_ops.layer_norm(x, self.weight, self.bias, self.eps)
        return super().forward(x)


class ConvNorm(nn.Sequential):
    """Convolution (1x1 or depthwise 3x3), BatchNorm and what follows; without gradients folded.

    The norm becomes a scale and a shift, computed anew in each call and not stored: weights may
    change at any time and threads share nothing. Hooks see every step: with one on any part,
    nothing is folded.
    """

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        conv, norm = self[0], self[1]
        if self.training or torch.is_grad_enabled() or is_watched(self):
            return super().forward(x)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        rows = x.permute(0, 2, 3, 1)
        is_fused = map_ops.is_usable(rows, conv.weight, norm.weight)
        # Scaling the weights is worth it where they are smaller than the map.
        if not is_fused and rows[..., 0].numel() <= conv.weight.numel() // conv.out_channels:
            return super().forward(x)
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = torch.addcmul(norm.bias, norm.running_mean, scale, value=-1.0)
        if conv.bias is not None:
            shift = torch.addcmul(shift, conv.bias, scale)
        rest = list(self)[2:]
        if is_fused:
            activation = fused_name(rest[0]) if rest else ""
            rest = rest[1:] if activation else rest
            if isinstance(conv, PointwiseConv):
                rows = F.linear(rows, conv.weight.flatten(1))
                x = to_nchw(map_ops.affine_(rows, scale, shift, activation))
            else:
                weight = conv.weight * scale.view(-1, 1, 1, 1)
                x = to_nchw(map_ops.depthwise_conv(rows, weight, shift, activation))
        else:
            weight = conv.weight * scale.view(-1, 1, 1, 1)
            if isinstance(conv, PointwiseConv):
                x = pointwise(x, weight, shift)
            else:
                x = F.conv2d(x, weight, shift, padding=conv.padding, groups=conv.groups)
        for module in rest:
            x = module(x)
        return x


def fused_name(activation: nn.Module) -> str:
    """What `map_ops` calls an activation; "" if it is another module."""
    if isinstance(activation, nn.GELU):
        return "gelu" if activation.approximate == "none" else ""
    return "relu" if isinstance(activation, nn.ReLU) else ""


def is_watched(module: nn.Module) -> bool:
    """Whether a hook sits on any part of `module`, or on all modules of the process."""
    if module._forward_hooks or module._forward_pre_hooks:
        return True
    if all_modules._global_forward_hooks or all_modules._global_forward_pre_hooks:
        return True
    # Not `module.modules()`: that costs more than a small block's arithmetic.
    return any(child is not None and is_watched(child) for child in module._modules.values())


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1x1 convolution of `[B, C, H, W]` as one product over channels-last memory."""
    return to_nchw(F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias))


class PointwiseConv(nn.Conv2d):
    """1x1 convolution as one matrix product over channels-last memory, `[B, C, H, W]` both ways.

    torch's own choice for small inputs is a slow path that copies them (1 image: 2x the time).
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(x, self.weight, self.bias)


class PatchConv(nn.Conv2d):
    """Convolution whose stride is its size: patches as rows of one matrix product.

    `[B, C, H, W]` in any memory layout -> `[B, D, H//P, W//P]`, channels-last; pixels beyond the
    last whole patch are not read, as in a convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, patch: int) -> None:
        super().__init__(in_channels, out_channels, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        patch = self.kernel_size[0]
        rows, columns = height // patch, width // patch
        x = x[:, :, : rows * patch, : columns * patch]
        x = x.reshape(batch, channels, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
        return to_nchw(F.linear(x.flatten(3), self.weight.flatten(1), self.bias))


class Scan2d(nn.Module):
    """The selective scan of one block: holds the scheme and the backend, no parameters.

    A module of its own so that a hook can watch exactly what is scanned and what comes back.
    """

    def __init__(self, spec: ScanSpec, backend: str) -> None:
        super().__init__()
        self.spec = spec
        self.backend = backend

    def forward(
        self,
        x: Tensor,  # [B, C, H, W]
        x_proj_weight: Tensor,  # [K, R + 2N, C]
        dt_projs_weight: Tensor,  # [K, C, R]
        dt_projs_bias: Tensor,  # [K, C]
        A_logs: Tensor,  # [K*C, N]
        Ds: Tensor,  # [K*C]
    ) -> Tensor:
        return scan2d(
            x,
            x_proj_weight,
            dt_projs_weight,
            dt_projs_bias,
            A_logs,
            Ds,
            order=self.spec,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"{self.spec}, backend={self.backend}"


class ES2D(nn.Module):
    """Mixer: `out_proj(out_norm(scan(SiLU(conv(u)))) * SiLU(z))` with (u, z) = `in_proj(x)`.

    Parameters per group are those of VMamba's SS2D, https://arxiv.org/abs/2401.10166.
    """

    def __init__(self, dim: int, spec: ScanSpec, backend: str) -> None:
        super().__init__()
        inner = 2 * dim
        rank = math.ceil(dim / 16)
        groups = N_PARAMETER_SETS
        self.dim = dim
        self.inner = inner
        self.dt_rank = rank
        self.d_state = D_STATE
        self.x_proj_weight = nn.Parameter(torch.empty(groups, rank + 2 * D_STATE, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(groups, inner, rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(groups, inner))
        self.A_logs = nn.Parameter(torch.empty(groups * inner, D_STATE))
        self.Ds = nn.Parameter(torch.empty(groups * inner))
        self.out_norm = Norm(inner)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.scan = Scan2d(spec, backend)

    def forward(self, x: Tensor) -> Tensor:
        if is_watched(self.in_proj):
            u, z = self.in_proj(x).chunk(2, dim=-1)
        else:
            # Two products instead of one split product: both halves come out contiguous, nothing
            # is copied.
            u, z = (F.linear(x, half) for half in self.in_proj.weight.chunk(2))
        conv, norm = self.conv2d, self.out_norm
        is_fused = (
            isinstance(norm, Norm)
            and map_ops.is_usable(u, conv.weight, conv.bias, norm.weight, norm.bias)
            and not (is_watched(conv) or is_watched(norm))
        )
        if is_fused:
            assert conv.bias is not None
            u = to_nchw(map_ops.depthwise_conv(u, conv.weight, conv.bias, "silu"))
        else:
            u = F.silu(conv(to_nchw(u)))
        y = self.scan(
            u,
            self.x_proj_weight,
            self.dt_projs_weight,
            self.dt_projs_bias,
            self.A_logs,
            self.Ds,
        )
        y = to_nhwc(y)
        if is_fused:
            return self.out_proj(map_ops.layer_norm(y, norm.weight, norm.bias, norm.eps, gate=z))
        return self.out_proj(norm(y) * F.silu(z))


class ChannelGate(nn.Module):
    """Gate of an EVSS path: `v * sigmoid(select(GELU(reduce(mean_HW(norm(v))))))`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = Norm(dim)
        self.global_reduce = nn.Linear(dim, dim // 8)
        self.channel_select = nn.Linear(dim // 8, dim)

    def gate(self, v: Tensor) -> Tensor:
        """The factors `[B, 1, 1, C]` for `v` `[B, H, W, C]`."""
        norm = self.norm
        is_fused = isinstance(norm, Norm) and map_ops.is_usable(v, norm.weight, norm.bias)
        if is_fused and not is_watched(norm):
            pooled = map_ops.normed_mean(v, norm.weight, norm.bias, norm.eps)[:, None, None]
        else:
            pooled = norm(v).mean((1, 2), keepdim=True)
        return torch.sigmoid(self.channel_select(F.gelu(self.global_reduce(pooled))))

    def forward(self, v: Tensor) -> Tensor:
        return v * self.gate(v)


class EVSSBlock(nn.Module):
    """Efficient visual state space block: residual + gated scan path + gated convolution path.

    One `se` module gates both paths, as in the authors' code.
    `conv_branch=False` and `se=False` are the paper's ablations.
    """

    def __init__(
        self,
        dim: int,
        spec: ScanSpec,
        backend: str,
        drop_path: float = 0.0,
        conv_branch: bool = True,
        se: bool = True,
    ) -> None:
        super().__init__()
        self.norm = Norm(dim)
        self.op = ES2D(dim, spec, backend)
        self.conv_branch = (
            ConvNorm(
                nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
                nn.BatchNorm2d(dim, eps=NORM_EPS),
                nn.GELU(),
                PointwiseConv(dim, dim),
            )
            if conv_branch
            else None
        )
        self.se = ChannelGate(dim) if se else None
        self.drop_path = drop_path

    def _gated(self, v: Tensor) -> Tensor:
        return v if self.se is None else self.se(v)

    def forward_paths(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The addends of the block's output: (residual, scan, convolution), `[B, H, W, C]` each.

        Before drop path; without a convolution branch the last one is zeros.
        """
        n = self.norm(x)
        scan_path = self._gated(self.op(n))
        if self.conv_branch is None:
            return x, scan_path, torch.zeros_like(x)
        return x, scan_path, self._gated(to_nhwc(self.conv_branch(to_nchw(n))))

    def forward(self, x: Tensor) -> Tensor:
        n_images = len(x)
        is_plain = not self.training and not torch.is_grad_enabled()
        if n_images > 1 and x.device.type == "cpu" and is_plain:
            # Images are independent here. Tensors beyond the cache (and beyond 32 MB, where the
            # system hands out fresh pages each time) cost more than the arithmetic on them.
            n_images = max(1, CHUNK_BYTES // (2 * x[0].numel() * x.element_size()))
        if n_images < len(x) and not is_watched(self):
            return torch.cat([self._forward(part) for part in x.split(n_images)])
        return self._forward(x)

    def values_and_gates(self, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What "scan" and "conv" add before their gates, `[B, H, W, C]`, and the gates
        `[B, 1, 1, C]`.

        Without a convolution branch there is no "conv", without squeeze-excitation no gate.
        """
        n = self.norm(x)
        values = {"scan": self.op(n)}
        if self.conv_branch is not None:
            values["conv"] = to_nhwc(self.conv_branch(to_nchw(n)))
        if self.se is None:
            return values, {}
        return values, {name: self.se.gate(value) for name, value in values.items()}

    def _forward(self, x: Tensor) -> Tensor:
        if self.se is None or is_watched(self.se):
            residual, scan_path, conv_path = self.forward_paths(x)
            return residual + drop_path(scan_path + conv_path, self.drop_path, self.training)
        # The same sum, gates multiplied in as the paths are added: two passes instead of four.
        values, factors = self.values_and_gates(x)
        paths, gates = list(values.values()), list(factors.values())
        if map_ops.is_usable(x, *paths, *gates):
            return map_ops.gated_sum(x, paths, gates)
        if self.training and self.drop_path > 0.0:
            keep = drop_path(x.new_ones(len(x), 1, 1, 1), self.drop_path, self.training)
            gates = [gate * keep for gate in gates]
        for path, gate in zip(paths, gates, strict=True):
            x = torch.addcmul(x, path, gate)
        return x


class SqueezeExcite(nn.Module):
    """Gate of an inverted residual: `v * sigmoid(expand(ReLU(reduce(mean_HW(v)))))`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_reduce = PointwiseConv(dim, dim // 8)
        self.conv_expand = PointwiseConv(dim // 8, dim)

    def gate(self, v: Tensor) -> Tensor:
        """The factors `[B, C, 1, 1]` for `v` `[B, C, H, W]`."""
        pooled = v.mean((2, 3), keepdim=True)
        return torch.sigmoid(self.conv_expand(F.relu(self.conv_reduce(pooled))))

    def forward(self, v: Tensor) -> Tensor:
        return v * self.gate(v)


class InvertedResidual(nn.Module):
    """MobileNet's block: 1x1 expand by 4, depthwise 3x3, squeeze-excitation, 1x1, residual."""

    def __init__(self, dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        hidden = 4 * dim
        self.conv_pw = ConvNorm(
            PointwiseConv(dim, hidden, bias=False),
            nn.BatchNorm2d(hidden, eps=NORM_EPS),
            nn.ReLU(inplace=True),
        )
        self.conv_dw = ConvNorm(
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden, eps=NORM_EPS),
            nn.ReLU(inplace=True),
        )
        self.se = SqueezeExcite(hidden)
        self.conv_pw2 = ConvNorm(
            PointwiseConv(hidden, dim, bias=False), nn.BatchNorm2d(dim, eps=NORM_EPS)
        )
        self.drop_path = drop_path

    def value_and_gate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the last convolution gets, before its gate, `[B, 4C, H, W]`, and the gate
        `[B, 4C, 1, 1]`, for `x` `[B, H, W, C]`."""
        v = self.conv_dw(self.conv_pw(to_nchw(x)))
        return v, self.se.gate(v)

    def forward(self, x: Tensor) -> Tensor:
        v = self.se(self.conv_dw(self.conv_pw(to_nchw(x))))
        v = to_nhwc(self.conv_pw2(v))
        return x + drop_path(v, self.drop_path, self.training)


class PatchMerging(nn.Module):
    """Halve the map: 2x2 tokens to one, `[B, H, W, C]` -> `[B, H/2, W/2, 2C]`; odd sides padded."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = Norm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        batch, height, width, dim = x.shape
        # Offsets (0, 0), (1, 0), (0, 1), (1, 1), as (row, column): the row offset runs fastest.
        x = x.view(batch, height // 2, 2, width // 2, 2, dim).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.flatten(3)))


class Stage(nn.Module):
    """Blocks, then (except in the last stage) patch merging; the subclass names them."""

    def named_blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Names below the stage, and blocks, in the order in which they run."""
        raise NotImplementedError

    def merging(self) -> PatchMerging | None:
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, H, W, C]` -> the stage's output, and the input of the next stage."""
        for _, block in self.named_blocks():
            x = block(x)
        merging = self.merging()
        return x, x if merging is None else merging(x)


class EVSSStage(Stage):
    """EVSS blocks `blocks.N`, then (except in the last stage) patch merging `downsample`."""

    def __init__(self, blocks: list[EVSSBlock], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def named_blocks(self) -> Iterator[tuple[str, nn.Module]]:
        for name, block in self.blocks.named_children():
            yield f"blocks.{name}", block

    def merging(self) -> PatchMerging | None:
        return self.downsample


class InvertedStage(Stage):
    """Inverted residuals, then (except in the last stage) patch merging.

    The authors' stage is one list in which places 0 and n+1 only change the layout: blocks are
    `1`..`n`, merging is `n+2`. The names are kept; the layout changes are not needed here.
    """

    def __init__(self, blocks: list[InvertedResidual], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.depth = len(blocks)
        for place, block in enumerate(blocks, start=1):
            self.add_module(str(place), block)
        if downsample is not None:
            self.add_module(str(self.depth + 2), downsample)

    def named_blocks(self) -> Iterator[tuple[str, nn.Module]]:
        for place in range(1, self.depth + 1):
            yield str(place), self._modules[str(place)]  # type: ignore[misc]

    def merging(self) -> PatchMerging | None:
        return self._modules.get(str(self.depth + 2))  # type: ignore[return-value]


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: drop samples of `[B, ...]` with probability `rate`, rescale the rest."""
    if rate == 0.0 or not training:
        return x
    keep = 1.0 - rate
    mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep).div_(keep)
    return x * mask
