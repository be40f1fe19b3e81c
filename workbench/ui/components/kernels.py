"""Components of the kernels tab; kernel_roofline.js, kernel_token.js and kernel_code.js draw
them."""

from __future__ import annotations

from workbench.ui.components.plotly_panel import Json


class RooflineLab(Json):
    """Roofline, map of where scheme A pays and a table of floors, computed in the browser.

    Event `choose`: {do: "what", device, size, batch, step, dtype, passes}, when a slider rests.
    """

    kind = "kernroof"


class TokenCosts(Json):
    """What the token in focus costs. Event `choose`: {do: "kernel", a, target}."""

    kind = "kerntoken"


class KernelInspector(Json):
    """A compiled kernel and its listings.

    Event `choose`: {do: "kernel", a, target, b, target_b}.
    """

    kind = "kerncode"
