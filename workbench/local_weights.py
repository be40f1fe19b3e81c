"""A workbench for the owner of the machine: weights may also be a file or a name on the hub, and
the list of schemes any.

The page and the HTTP API take names from the server's lists only; `python -m workbench` uses this.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import models
from kernels import ScanSpec
from workbench.analyses.erf.distributed import Group, join, leave
from workbench.choices import ScanChoice, WeightsChoice, check_scan, scan_choice
from workbench.erf_lab import TIMM, Entry, ErfLab
from workbench.errors import BadInputError
from workbench.image_sets import FolderImages, ImageSet
from workbench.runtime import SEED, Workbench
from workbench.settings import Settings
from workbench.view import View

FILE = "file:"


class LocalWorkbench(Workbench):
    """`weights` is what `models.create_model` loads: "FILE", "FILE#entry" or "hf:OWNER/NAME".

    `schemes`: texts of the schemes to list, and so to compare; None for the page's list. `folder`:
    photos that receptive fields are averaged over. Under torchrun the processes share them.
    """

    def __init__(
        self,
        settings: Settings,
        weights: str | None = None,
        schemes: Sequence[str] | None = None,
        folder: Path | None = None,
    ) -> None:
        super().__init__(settings)
        self._group = join()
        self.is_main = self._group is None or self._group.rank == 0
        self.erf_lab = LocalErfLab(self, folder, self._group)
        self._own = weights
        self._schemes = schemes and tuple(dict.fromkeys(map(check_scan, schemes)))

    def leave(self) -> None:
        """Leave the other processes of a torchrun, if there are any."""
        leave(self._group)

    def scans(self) -> tuple[ScanChoice, ...]:
        if self._schemes is None:
            return super().scans()
        return tuple(scan_choice(ScanSpec.parse(text)) for text in self._schemes)

    def weights(self, model: str) -> tuple[WeightsChoice, ...]:
        listed = super().weights(model)
        return listed if self._own is None else (*listed, WeightsChoice(self._own, self._own))

    def weighted(self, view: View, which: str) -> models.EfficientVMamba:
        if self._own is None or view.weights != self._own:
            return super().weighted(view, which)
        return self.load_file(view.model, self._own)

    def load_file(self, model: str, weights: str) -> models.EfficientVMamba:
        return self.loaded.get((model, weights), lambda: self._load_own(model, weights))

    def _load_own(self, name: str, weights: str) -> models.EfficientVMamba:
        try:
            model = models.create_model(name, weights=weights, backend=self.backend, seed=SEED)
        except (ValueError, OSError) as error:
            raise BadInputError(f"{str(error).rstrip('.')}.") from error
        return model.eval().requires_grad_(False).to(self.device)


class LocalErfLab(ErfLab):
    """Any timm network, weights from files ("file:FILE", "file:FILE#entry"), photos of a folder."""

    def __init__(self, workbench: LocalWorkbench, folder: Path | None, group: Group | None) -> None:
        super().__init__(workbench, group)
        self._local = workbench
        self._folder = folder

    def images(self, view: View, n: int | None = None) -> ImageSet:
        if self._folder is None:
            return super().images(view, n)
        shape = self._local.prepared(view).rgb.shape[:2]
        return FolderImages(self._folder, shape, view.erf_images if n is None else n, SEED)

    def check_rival(self, name: str) -> None:
        # Loading tells what is wrong with a file or an unlisted name of timm.
        if not name.startswith((FILE, TIMM)):
            super().check_rival(name)

    def entry(self, view: View, rival: str | None) -> Entry:
        if rival is None or not rival.startswith(FILE):
            return super().entry(view, rival)
        weights = rival.removeprefix(FILE)
        model = models.with_scan(self._local.load_file(view.model, weights), view.scan_a)
        return self.entry_of(view, model)
