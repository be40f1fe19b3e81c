"""Load an operator that a user names, and call it the way its signature asks for.

It runs the user's own code: for Python and the command line only, never for the page or the API.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import BadInputError

# Names of arguments that published operators use for what the probe knows.
HEIGHTS = ("h", "height", "ori_h", "orig_h", "hh")
WIDTHS = ("w", "width", "ori_w", "orig_w", "ww")
CHANNELS = ("c", "channels", "dim", "d_model", "in_channels", "hidden_dim", "d_inner", "inner")


@dataclass(frozen=True)
class Operator:
    """A callable of the user's and the arguments that it takes besides its tensor."""

    name: str
    run: Callable[..., Any]
    parameters: tuple[inspect.Parameter, ...]

    def __call__(self, tensor: Tensor, height: int, width: int, channels: int) -> Tensor:
        """The operator's output; a `BadInputError` says in one sentence why there is none."""
        known = known_arguments(height, width, channels)
        args, kwargs = fill(self.name, self.parameters, known)
        try:
            found = self.run(tensor, *args, **kwargs)
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise BadInputError(
                f"{self.name} raised {type(error).__name__} for a tensor of shape "
                f"{list(tensor.shape)} ({height} x {width} tokens): {first_line(error)}. Give an "
                "operator that takes this shape, or wrap it in a function that does."
            ) from error
        if not isinstance(found, Tensor):
            raise BadInputError(
                f"{self.name} returned {type(found).__name__}; the probe needs one tensor. Wrap it "
                "in a function that returns the tensor."
            )
        if not found.dtype.is_floating_point:
            raise BadInputError(
                f"{self.name} returned {found.dtype} for a {tensor.dtype} tensor; the probe needs "
                "a floating-point tensor."
            )
        return found


def known_arguments(height: int, width: int, channels: int) -> dict[str, int]:
    return {
        **dict.fromkeys(HEIGHTS, height),
        **dict.fromkeys(WIDTHS, width),
        **dict.fromkeys(CHANNELS, channels),
    }


def fill(
    name: str, parameters: tuple[inspect.Parameter, ...], known: dict[str, int]
) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments: known names, else defaults; an error names any other."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = known.get(parameter.name.lower(), parameter.default)
        if value is parameter.empty:
            raise BadInputError(
                f"{name} needs an argument {parameter.name!r} that the probe does not know. Known "
                "are the tensor, height, width and channels; wrap the operator in a function of "
                "these."
            )
        if parameter.kind is parameter.KEYWORD_ONLY:
            kwargs[parameter.name] = value
        else:
            args.append(value)
    return args, kwargs


def operator_of(given: Any, height: int, width: int, channels: int) -> Operator:
    """The operator behind a name "package.module:Name", a class or a callable."""
    name = given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)
    found = load(given) if isinstance(given, str) else given
    if isinstance(found, type) and issubclass(found, torch.autograd.Function):
        # Old style: forward(ctx, x, ...); new style has setup_context and no ctx.
        is_new = found.setup_context is not torch.autograd.Function.setup_context
        return Operator(name, found.apply, _parameters(found.forward)[1 if is_new else 2 :])
    if isinstance(found, type) and issubclass(found, nn.Module):
        known = known_arguments(height, width, channels)
        args, kwargs = fill(name, _parameters(found.__init__)[1:], known)
        try:
            found = found(*args, **kwargs)
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise BadInputError(
                f"{name} could not be built: it raised {type(error).__name__}: "
                f"{first_line(error)}. Give a function that builds and calls it."
            ) from error
    if isinstance(found, nn.Module):
        return Operator(name, found.double().eval(), _parameters(found.forward)[1:])
    if not callable(found) or isinstance(found, type):
        raise BadInputError(
            f"{name} is {type(found).__name__}, which cannot be called. Give a function, an "
            "nn.Module or a torch.autograd.Function."
        )
    return Operator(name, found, _parameters(found)[1:])


def load(name: str) -> Any:
    """The object "package.module:Name" of an installed package."""
    module_name, colon, path = name.partition(":")
    if not colon or not module_name or not path:
        raise BadInputError(
            f"{name!r} names no operator. Write PACKAGE.MODULE:NAME, such as mypackage.scan:Gather."
        )
    try:
        found = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise BadInputError(
            f"{module_name} cannot be imported: {type(error).__name__}: {first_line(error)}. "
            "Install the package in this environment, or start from its folder."
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise BadInputError(f"{module_name} has no {path!r}. Check the name after the colon.")
        found = getattr(found, part)
    return found


def first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return (text[:200] or "without a message").rstrip(".")


def _parameters(run: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    try:
        return tuple(inspect.signature(run).parameters.values())
    except (TypeError, ValueError):  # built-in functions have none
        return ()
