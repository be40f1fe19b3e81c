"""Probe an operator of the user's own: what does it read, and is its backward pass right?

`gather` takes a map `[B, C, H, W]` and returns sequences in any layout (`[B, K, C, L]`, `[B, K*C,
L]`, `[B, L, C]`, ...); `merge` takes what `gather` returned and gives the map back. Token numbers
and channel numbers are pushed through, so what is reported is what the code does. It runs the
user's code: for Python and the command line only, never for the page or the API.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels import SCHEMES, ScanSpec, scan_order
from workbench import __version__
from workbench.analyses.user_operator import Operator, first_line, operator_of
from workbench.errors import BadInputError
from workbench.results import UserProbeResult

HEIGHT, WIDTH = 6, 8  # sides that differ, and that 2 divides
CHANNELS = 4  # some operators split the channels in four
LARGEST_MAP = 128 * 128
NOT_ASKED = "not asked"
CLOSE = 1e-5  # relative; operators may compute in float32
SEED = 0


def probe_operator(
    gather: Any,
    merge: Any = None,
    *,
    height: int = HEIGHT,
    width: int = WIDTH,
    channels: int = CHANNELS,
) -> UserProbeResult:
    """Probe `gather`, and `merge` with it, on a map of `height` x `width` tokens.

    Each is a callable, an nn.Module (or its class), a torch.autograd.Function, or the name
    "package.module:Name" of one. An operator that cannot be probed raises a `BadInputError` with
    the reason; what is wrong with one that can is in the result.
    """
    started = time.perf_counter()
    for name, value in (("height", height), ("width", width), ("channels", channels)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadInputError(f"{name} is {value!r}; give a whole number from 1 on.")
    if height * width > LARGEST_MAP:
        raise BadInputError(
            f"A map of {height} x {width} tokens is larger than {LARGEST_MAP:,} tokens; what is "
            "wrong shows on a small one, such as 6 x 8."
        )
    first = operator_of(gather, height, width, channels)
    second = None if merge is None else operator_of(merge, height, width, channels)
    with _uninitialised_is_nan():
        found = _probe_map(first, second, height, width, channels)
        other = _other_map(first, second, found, height, width, channels)
    tokens = found.index[found.index >= 0]
    visits = np.bincount(tokens, minlength=height * width)
    return UserProbeResult(
        operator=first.name,
        merge=second.name if second else "",
        height=height,
        width=width,
        index=found.index,
        n_pads=int((found.index < 0).sum()),
        lost=tuple(np.flatnonzero(visits == 0).tolist()),
        repeated=tuple(np.flatnonzero(visits > 1).tolist()),
        scheme=known_scheme(found.index, height, width),
        round_trip=found.round_trip,
        backward=found.backward,
        merge_backward=found.merge_backward,
        other_map=other,
        findings=tuple(found.findings),
        versions={
            "workbench": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        seconds=time.perf_counter() - started,
    )


@dataclass
class _Found:
    index: np.ndarray
    round_trip: str
    backward: str
    merge_backward: str
    findings: list[str]

    @property
    def verdicts(self) -> tuple[tuple[str, str], ...]:
        return (
            ("merge(gather(x)) = x", self.round_trip),
            ("backward of the gather", self.backward),
            ("backward of the merge", self.merge_backward),
        )


def _probe_map(
    gather: Operator, merge: Operator | None, height: int, width: int, channels: int
) -> _Found:
    n_tokens = height * width
    generator = torch.Generator().manual_seed(SEED)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64) - 0.5

    def call(x: Tensor) -> Tensor:
        return gather(x, height, width, channels)

    one = torch.ones(1, channels, height, width, dtype=torch.float64)
    numbers = torch.arange(1, n_tokens + 1, dtype=torch.float64).reshape(height, width)
    tokens = call(one * numbers).detach()
    places = call(one * torch.arange(1, channels + 1).reshape(1, -1, 1, 1)).detach()
    token, channel = _as_numbers(gather, tokens, n_tokens), _as_numbers(gather, places, channels)
    findings = []
    if tokens.dtype != torch.float64:
        findings.append(f"{gather.name} returns {tokens.dtype} for a float64 map.")
    _check_linear(gather, call, random(1, channels, height, width), token, channel)
    index, is_same = sequences(gather.name, token, channel, channels)
    if not is_same:
        findings.append("The channels are not all read along the same sequences.")
    backward = _gather_backward(
        call, random(1, channels, height, width), token, channel, random(*tokens.shape), width
    )
    round_trip = merge_backward = NOT_ASKED
    if merge is not None:
        x = random(2, channels, height, width)
        visits = np.bincount(index[index >= 0], minlength=n_tokens)
        often = int(np.median(visits[visits > 0]))
        round_trip = _round_trip(merge, x, call(x).detach(), often, height, width, channels)
        merge_backward = _merge_backward(merge, call(x).detach(), random, height, width, channels)
    return _Found(index, round_trip, backward, merge_backward, findings)


def _as_numbers(gather: Operator, found: Tensor, largest: int) -> np.ndarray:
    """Numbers as they came back, int64; 0 where something else was read (a pad)."""
    values = found.double().numpy()
    if np.isnan(values).any():
        at = tuple(int(i) for i in np.argwhere(np.isnan(values))[0])
        raise BadInputError(
            f"{gather.name} leaves {np.isnan(values).sum()} of its {values.size} values unset "
            f"(uninitialised memory), the first at {list(at)}. Every value must be written."
        )
    numbers = np.rint(values).astype(np.int64)
    wrong = (numbers != values) | (numbers < 0) | (numbers > largest)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise BadInputError(
            f"{gather.name} does not only reorder tokens: for the numbers 1 to {largest} it "
            f"returned {values[at]:.6g} at {list(at)}. Give the part that gathers, without "
            "convolution, norm or scan."
        )
    return numbers


def _check_linear(
    gather: Operator, call: Any, x: Tensor, token: np.ndarray, channel: np.ndarray
) -> None:
    """The numbers must not depend on what is in the map."""
    flat = torch.nn.functional.pad(x[0].flatten(1), (1, 0))
    flat = torch.nn.functional.pad(flat, (0, 0, 1, 0))
    wanted = flat[torch.from_numpy(channel), torch.from_numpy(token)]
    given = call(x).detach().double()
    if given.shape != wanted.shape or not torch.allclose(given, wanted, CLOSE, CLOSE):
        raise BadInputError(
            f"{gather.name} is not a fixed reordering: for random values it reads other "
            "tokens than for token numbers. An order that depends on the content has no path."
        )


def sequences(
    name: str, token: np.ndarray, channel: np.ndarray, channels: int
) -> tuple[np.ndarray, bool]:
    """Index `[K, L]` from the token and channel numbers (from 1, 0 = pad) of any layout.

    The steps are the last axis along which the channel stays; of five axes or more the last two are
    read row by row where the channel stays along both. The second value: do all channels share the
    sequences?
    """

    def stays(axis: int) -> bool:
        least = np.where(channel == 0, channels + 1, channel).min(axis)
        most = channel.max(axis)
        return bool(((most == 0) | (least == most)).all())

    if token.ndim >= 5 and stays(-1) and stays(-2):
        shape = (*token.shape[:-2], -1)
        token, channel = token.reshape(shape), channel.reshape(shape)
    steps = [axis for axis in range(token.ndim) if stays(axis)]
    axis = max(steps, default=0)
    if not steps or (token.shape[axis] == 1 and axis < token.ndim - 1 and token.max() > 1):
        raise BadInputError(
            f"{name} returned shape {list(token.shape)}, in which no axis reads tokens of one "
            "channel. Return [batch, sequences, channels, steps]."
        )
    rows = np.moveaxis(token, axis, -1).reshape(-1, token.shape[axis]) - 1
    of_row = np.moveaxis(channel, axis, -1).reshape(rows.shape).max(1)
    by_channel = [rows[of_row == c] for c in range(1, channels + 1)]
    n_empty = int((of_row == 0).sum()) // channels
    is_same = all(np.array_equal(by_channel[0], own) for own in by_channel[1:])
    index = by_channel[0] if is_same else np.unique(np.concatenate(by_channel), axis=0)
    empty = np.full((n_empty, rows.shape[1]), -1)
    return np.concatenate([index, empty]).astype(np.int32), is_same


def _gather_backward(
    call: Any, x: Tensor, token: np.ndarray, channel: np.ndarray, weights: Tensor, width: int
) -> str:
    """Compare the gradient with the adjoint of the probed map: each visit adds its weight."""
    grad, problem = _gradient(call, x, weights)
    if grad is None:
        return problem
    wanted = np.zeros((x.shape[1] + 1, x[0, 0].numel() + 1))
    np.add.at(wanted, (channel, token), weights.numpy())
    given = grad[0].flatten(1).double().numpy()
    wrong = ~np.isclose(given, wanted[1:, 1:], CLOSE, CLOSE)
    if not wrong.any():
        return "yes"
    at = int(np.flatnonzero(wrong.any(0))[0])
    c = int(np.flatnonzero(wrong[:, at])[0])
    return (
        f"no: at {wrong.any(0).sum()} of {wrong.shape[1]} tokens the gradient is another, first at "
        f"({at // width}, {at % width}): {given[c, at]:.4g}, the steps that read it say "
        f"{wanted[c + 1, at + 1]:.4g}"
    )


def _gradient(call: Any, x: Tensor, weights: Tensor) -> tuple[Tensor | None, str]:
    """Gradient of `sum(weights * call(x))` with respect to x, or why there is none."""
    x = x.clone().requires_grad_(True)
    found = call(x)
    if not found.requires_grad:
        return None, "no: its output is cut off from the gradient"
    try:
        (grad,) = torch.autograd.grad(found, x, weights.to(found.dtype), allow_unused=True)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        return None, f"no: it raised {type(error).__name__}: {first_line(error)}"
    if grad is None:
        return None, "no: it returns no gradient for the tensor"
    if grad.shape != x.shape:
        return None, f"no: it returns shape {list(grad.shape)} for a tensor of {list(x.shape)}"
    return grad, ""


def _round_trip(
    merge: Operator, x: Tensor, ys: Tensor, visits: int, height: int, width: int, channels: int
) -> str:
    """Is the merged map x, or `visits` times x: as often as most tokens are read?"""
    try:
        back = merge(ys, height, width, channels).detach().double()
    except BadInputError as error:
        return f"no: {error}"
    maps = _as_maps(back, height, width, channels)
    if maps is None or maps.shape != x.shape:
        return (
            f"no: it returned shape {list(back.shape)}, which is no map of {height} x {width} "
            f"tokens with {channels} channels"
        )
    factor = (maps / x).permute(2, 3, 0, 1).flatten(2).flatten(0, 1).numpy()  # [tokens, B * C]
    for k in (1, visits):
        wrong = ~np.isclose(factor, k, CLOSE, CLOSE).all(1)
        if not wrong.any():
            return "yes" if k == 1 else f"yes, {k} times x: the visits are added"
    at = int(np.flatnonzero(wrong)[0])
    place = f"({at // width}, {at % width})"
    if np.isnan(factor[at]).any():
        what = "is never written (uninitialised memory)"
    else:
        what = f"comes back as {factor[at, 0]:.4g} times its value, not {visits} times"
    return f"no: {wrong.sum()} of {wrong.size} tokens differ, first {place}, which {what}"


def _as_maps(found: Tensor, height: int, width: int, channels: int) -> Tensor | None:
    """A merged map in any usual layout as `[B, C, H, W]`."""
    batch = 2
    if found.numel() != batch * channels * height * width or found.shape[0] != batch:
        return None
    if found.shape[1] == channels:
        return found.reshape(batch, channels, height, width)
    if found.shape[-1] == channels:
        return found.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    return None


def _merge_backward(
    merge: Operator, ys: Tensor, random: Any, height: int, width: int, channels: int
) -> str:
    """The adjoint in products: <merge(v), g> = <v, backward(g)> for every v and g."""

    def call(v: Tensor) -> Tensor:
        return merge(v, height, width, channels)

    try:
        first = call(ys)
        found, weights = first.dtype, random(*first.shape)
        grad, problem = _gradient(call, ys, weights)
        if grad is None:
            return problem
        for _ in range(3):
            v = random(*ys.shape)
            forward = (torch.nan_to_num(call(v).detach().double()) * weights).sum()
            backward = (torch.nan_to_num(grad.double()) * v).sum()
            scale = float(weights.norm() * v.norm())
            tolerance = 1e-9 if grad.dtype == found == torch.float64 else 1e-5
            if not abs(float(forward - backward)) < tolerance * scale:
                return (
                    f"no: for random v and g, merge(v) g = {float(forward):.6g} but v backward(g) "
                    f"= {float(backward):.6g}"
                )
    except BadInputError as error:
        return f"no: {error}"
    return "yes"


def _other_map(
    gather: Operator,
    merge: Operator | None,
    found: _Found,
    height: int,
    width: int,
    channels: int,
) -> str:
    """Sentence on what changes on a square map, or on one that is not where this one is square."""
    side = max(height, width)
    rows, columns = (side, side) if height != width else (height, width + 2)
    kind = "square" if rows == columns else "not square"
    where = f"On a map that is {kind}, {rows} x {columns} tokens,"
    try:
        other = _probe_map(gather, merge, rows, columns, channels)
    except BadInputError as error:
        return f"{where} it cannot be probed: {error}"
    differ = [
        f"{what}: {there}"
        for (what, here), (_, there) in zip(found.verdicts, other.verdicts, strict=True)
        if here.partition(":")[0] != there.partition(":")[0]
    ]
    here, there = known_scheme(found.index, height, width), known_scheme(other.index, rows, columns)
    if here != there:
        differ.append(f"same path as: {there or 'no known scheme'}")
    return f"{where} {'; '.join(differ)}." if differ else ""


def known_scheme(index: np.ndarray, height: int, width: int) -> str:
    """Text of the scheme whose sequences these are, in words if their order differs; "" if none."""
    rows = [tuple(row) for row in index.tolist() if max(row) >= 0]
    for spec in _specs():
        order = scan_order(spec, height, width)
        wanted = [tuple(row) for row in order.index.tolist() if max(row) >= 0]
        if rows == wanted:
            return str(spec)
        if sorted(rows) == sorted(wanted):
            return f"{spec}, with its sequences in another order"
    return ""


def _specs() -> Iterator[ScanSpec]:
    """Every runnable scheme, its published parameters first, then reversed and transposed."""
    listed = {"es2d": [{"step": p} for p in (2, 1, 3, 4)], "windows": [{"size": 2}, {"size": 7}]}
    listed["zigma"] = [{"path": p} for p in range(9)]
    for reverse, transpose in ((r, t) for r in range(3) for t in range(3)):
        for name, scheme in SCHEMES.items():
            names = {parameter.name for parameter in scheme.parameters}
            turned = {"reverse": reverse, "transpose": transpose}
            if scheme.needs or (any(turned.values()) and not set(turned) <= names):
                continue
            for params in listed.get(name, [{}]):
                yield ScanSpec(name, params | (turned if any(turned.values()) else {}))


@contextmanager
def _uninitialised_is_nan() -> Iterator[None]:
    """Memory that an operator asks for and never writes holds NaN instead of a lucky zero."""
    before = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warns)
