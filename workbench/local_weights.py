"""A workbench for the owner of the machine: weights may also be a file or a name on the hub.

The page and the HTTP API take names from the server's lists only; `python -m workbench` uses this.
"""

from __future__ import annotations

import models
from workbench.choices import WeightsChoice
from workbench.errors import BadInputError
from workbench.runtime import SEED, Workbench
from workbench.settings import Settings
from workbench.view import View


class LocalWorkbench(Workbench):
    """`weights` is what `models.create_model` loads: "FILE", "FILE#entry" or "hf:OWNER/NAME"."""

    def __init__(self, settings: Settings, weights: str | None = None) -> None:
        super().__init__(settings)
        self._own = weights

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
