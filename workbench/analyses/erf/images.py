"""Images as the analyses of receptive fields read them: one by one, a broken one with why."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.errors import BadInputError, CancelledError, WorkbenchError

Images = Sequence[tuple[str, np.ndarray]]  # (name, normalised input float32 [3, H, W])


def first_size(images: Images) -> tuple[int, int]:
    """(height, width) of the first image that can be read."""
    if not len(images):
        raise BadInputError("No images were given for the receptive field. Give at least one.")
    reasons = []
    for number in range(len(images)):
        _, read = read_image(images, number)
        if not isinstance(read, str):
            return read.shape[1], read.shape[2]
        reasons.append(read)
    raise BadInputError(
        f"None of the {len(images)} images can be read. The first: {reasons[0]} Give other images."
    )


def read_image(
    images: Images, number: int, size: tuple[int, int] | None = None
) -> tuple[str, np.ndarray | str]:
    """Name and pixels of an image, or why it has none, in words."""
    try:
        name, pixels = images[number]
    except CancelledError:
        raise
    except (WorkbenchError, OSError) as error:
        name = _name(images, number)
        return name, str(error).removeprefix(name).lstrip(": ")
    if size is not None and pixels.shape[1:] != size:
        height, width = pixels.shape[1:]
        return name, f"{height} x {width} px, while the first image has {size[0]} x {size[1]}"
    return name, pixels


def _name(images: Images, number: int) -> str:
    """Name of an image that cannot be read: the set's own, else its place."""
    name_of = getattr(images, "name", None)
    return name_of(number) if callable(name_of) else f"image {number + 1}"
