"""A workbench for the owner of the machine: weights may also be a file or a name on the hub, and
the list of schemes any.

The page and the HTTP API take names from the server's lists only; `python -m workbench` uses this.
"""

from __future__ import annotations

from collections.abc import Sequence

import models
from kernels import ScanSpec
from workbench.choices import ScanChoice, WeightsChoice, check_scan, scan_choice
from workbench.errors import BadInputError
from workbench.runtime import SEED, Workbench
from workbench.settings import Settings
from workbench.view import View


class LocalWorkbench(Workbench):
    """`weights` is what `models.create_model` loads: "FILE", "FILE#entry" or "hf:OWNER/NAME".

    `schemes`: texts of the schemes to list, and so to compare; None for the page's list.
    """

    def __init__(
        self,
        settings: Settings,
        weights: str | None = None,
        schemes: Sequence[str] | None = None,
    ) -> None:
        super().__init__(settings)
        self._own = weights
        self._schemes = schemes and tuple(dict.fromkeys(map(check_scan, schemes)))

    def scans(self) -> tuple[ScanChoice, ...]:
        if self._schemes is None:
            return super().scans()
        return tuple(scan_choice(ScanSpec.parse(text)) for text in self._schemes)

    def weights(self, model: str) -> tuple[WeightsChoice, ...]:
        listed = super().weights(model)
        return listed if self._own is None else (*listed, WeightsChoice(self._own, self._own))

    def _weighted(self, view: View, which: str) -> models.EfficientVMamba:
        if self._own is None or view.weights != self._own:
            return super()._weighted(view, which)
        return self._models.get((view.model, self._own), lambda: self._load_own(view.model))

    def _load_own(self, name: str) -> models.EfficientVMamba:
        try:
            model = models.create_model(name, weights=self._own, backend=self.backend, seed=SEED)
        except (ValueError, OSError) as error:
            raise BadInputError(f"{str(error).rstrip('.')}.") from error
        return model.eval().requires_grad_(False).to(self.device)
