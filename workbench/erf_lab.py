"""The receptive-field lab: fields of one image point in up to four networks, phases and paths.

The reference is the view's network with scheme A; its rivals (`View.erf_rivals`) are the same
network with another scheme, other weights or another size, or a network of timm. What they share is
the photos, the input size, the point of the input and the definition.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import models
from models import EfficientVMamba, available_weights
from workbench import __version__, choices
from workbench.analyses import timm_network
from workbench.analyses.erf import Target, fields, paths, phases
from workbench.analyses.erf.distributed import Group
from workbench.analyses.networks import Network
from workbench.analyses.scan_network import ScanNetwork
from workbench.cache import run_key
from workbench.choices import check_choice, short_name
from workbench.device import device_label
from workbench.errors import BadInputError, CancelledError, WorkbenchError
from workbench.image_sets import ErfImages, ImageSet, PhotoSet
from workbench.labels import scan_short
from workbench.progress import CancelToken
from workbench.results import ErfPathsResult, ErfPhasesResult, ErfResult, Provenance
from workbench.view import ERF_DEFINITIONS, ERF_GATES, ERF_SCALES, MAX_ERF_IMAGES, View

if TYPE_CHECKING:
    from workbench.runtime import Workbench

SEED = 0  # of the crops and of the bootstrap
KEYS = ("a", "b", "c", "d")  # the reference and its rivals, in pictures and exports
MAX_RIVALS = len(KEYS) - 1
# Phases and paths are several backward passes an image; a few images show what they show.
DETAIL_IMAGES = 8
UNIT = re.compile(r"stage|block\d{1,2}(\.(residual|scan|conv|gate))?")
TIMM = "timm:"


@dataclass(frozen=True, slots=True)
class RivalChoice:
    """A network that can stand beside the view's own."""

    name: str  # as in `View.erf_rivals`
    label: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Fields so far, keyed "a", "b", ...; of a network that cannot have one, the reason."""

    fields: dict[str, ErfResult]
    problems: tuple[str, ...]
    is_shown: bool  # every network has a field or a reason
    is_final: bool

    @property
    def done(self) -> int:
        return sum(result.n_images + len(result.skipped) for result in self.fields.values())


@dataclass(frozen=True, slots=True)
class Entry:
    """One network of a comparison, ready to run."""

    network: Network
    provenance: Provenance


class ErfLab:
    """Facade over the receptive-field analyses; the workbench lends models, cache and device."""

    def __init__(self, workbench: Workbench, group: Group | None = None) -> None:
        """`group`: processes that share the images of a field among them."""
        self._wb = workbench
        self._group = group

    # What can be chosen

    def rivals(self, view: View) -> tuple[RivalChoice, ...]:
        """What can be compared with the view's network, in words; the page lists no other."""
        scan_a, scan_b = scan_short(view.scan_a), scan_short(view.scan_b)
        shipped = {info.trained_scan for info in available_weights(view.model)}
        has_twin = view.weights == "default" and {view.scan_a, view.scan_b} <= shipped
        own = "own weights" if has_twin else "same weights"
        found = [RivalChoice("scan", f"{scan_b}, {own}")]
        if has_twin:
            found.append(RivalChoice("weights", f"{scan_b}, weights of {scan_a}"))
        if view.weights != "random":
            found.append(RivalChoice("random", f"{scan_a}, random weights"))
        for model in self._wb.models():
            if model.name not in (view.model, "efficientvmamba_test"):
                found.append(RivalChoice(model.name, f"{model.label}, {scan_a}"))
        found += [RivalChoice(TIMM + name, f"{name} (timm)") for name in self.timm_names()]
        return tuple(found)

    def units(self, view: View) -> tuple[tuple[str, str], ...]:
        """(name in `View.erf_unit`, words) of what the view's stage offers."""
        found = [("stage", "stage output")]
        for unit in self._own(view).units():
            if unit.stage == view.stage and unit.block is not None:
                name = f"block{unit.block}" + (f".{unit.path}" if unit.path else "")
                found.append((name, unit.label.partition(", ")[2]))
        return tuple(found)

    def resolve(self, view: View) -> View:
        """The view with every choice of the lab checked; a unit that its stage lacks becomes the
        stage's output, as a token outside the map moves into it."""
        check_choice("definition", view.erf_definition, list(ERF_DEFINITIONS))
        check_choice("state of the gates", view.erf_gates, list(ERF_GATES))
        check_choice("scale", view.erf_scale, list(ERF_SCALES))
        if not 1 <= view.erf_images <= MAX_ERF_IMAGES:
            raise BadInputError(
                f"{view.erf_images} images were asked for. Choose from 1 to {MAX_ERF_IMAGES:,}."
            )
        if not UNIT.fullmatch(view.erf_unit):
            raise BadInputError(
                f"There is no unit {view.erf_unit[:40]!r}. Write stage, block1 or a path of a "
                "block: block1.scan, block1.conv, block1.residual, block1.gate."
            )
        if view.erf_unit != "stage" and view.erf_unit not in dict(self.units(view)):
            view = replace(view, erf_unit="stage")
        if len(view.erf_rivals) > MAX_RIVALS:
            raise BadInputError(
                f"{len(view.erf_rivals)} networks were asked for beside the first; "
                f"at most {MAX_RIVALS} fit."
            )
        for name in view.erf_rivals:
            self.check_rival(name)
        for photo in view.erf_set:
            self._wb.photos.get(photo)
        return view

    def check_rival(self, name: str) -> None:
        known = ["scan", "weights", "random", *models.list_models()]
        known += [TIMM + listed for listed in self.timm_names()]
        check_choice("network to compare with", name, known)

    def timm_names(self) -> Sequence[str]:
        """timm networks that may be asked for; the page and the API know no others."""
        return tuple(dict.fromkeys((*timm_network.TIMM_NAMES, *self._wb.settings.timm)))

    # Images

    def images(self, view: View, n: int | None = None) -> ImageSet:
        """The view's photo and seeded crops of the gallery, or the photos that were uploaded."""
        n = view.erf_images if n is None else n
        prepared = self._wb.prepared(view)
        if view.erf_set:
            return PhotoSet(self._wb.photos, view.erf_set[:n], prepared.rgb.shape[:2])
        return ErfImages(self._wb.photos, view.photo, prepared, n, SEED)

    # Fields

    def field(
        self, view: View, rival: str | None = None, token: CancelToken | None = None
    ) -> Iterator[ErfResult]:
        """Running field of the view's point in its own network or in a rival; the last is final."""
        view = self._wb.resolve(view)
        return self._field(view, rival, self.images(view), token)

    def compare(self, view: View, token: CancelToken | None = None) -> Iterator[Comparison]:
        """All networks of the view, batch by batch in turn, so that they grow together."""
        view = self._wb.resolve(view)
        images = self.images(view)
        names = (None, *view.erf_rivals)
        latest: dict[str, ErfResult] = {}
        problems: list[str] = []
        runs: dict[str, Iterator[ErfResult]] = {}
        for key, name in zip(KEYS, names, strict=False):
            runs[key] = self._field(view, name, images, token)
        try:
            while runs:
                for key in tuple(runs):
                    try:
                        latest[key] = next(runs[key])
                    except CancelledError:
                        raise
                    except WorkbenchError as error:
                        if key == KEYS[0]:
                            raise
                        problems.append(str(error))
                        latest.pop(key, None)
                    if key not in latest or latest[key].is_final:
                        del runs[key]
                    in_order = {k: latest[k] for k in KEYS if k in latest}
                    is_shown = all(k in latest for k in runs)
                    yield Comparison(in_order, tuple(dict.fromkeys(problems)), is_shown, not runs)
        finally:
            for run in runs.values():
                run.close()  # type: ignore[attr-defined]

    def kept(self, view: View) -> Comparison | None:
        """What was computed of the view, also where the run was stopped; None where nothing was."""
        view = self._wb.resolve(view)
        images = self.images(view)
        found = {}
        for key, name in zip(KEYS, (None, *view.erf_rivals), strict=False):
            run_key = self._key("erf", self.entry(view, name), **self._what(view, images))
            for kept in (run_key, _stopped(run_key)):
                if key not in found and (result := self._wb.results.get(kept)) is not None:
                    found[key] = result
        return Comparison(found, (), True, False) if KEYS[0] in found else None

    def phases(self, view: View, token: CancelToken | None = None) -> Iterator[ErfPhasesResult]:
        """Fields of the step x step tokens around the view's token, in its own network."""
        view, entry, images, at = self._detail(view)
        run = phases(
            entry.network,
            images,
            view.stage,
            *at,
            definition=view.erf_definition,
            gates=view.erf_gates,
            provenance=entry.provenance,
            token=token,
            seed=SEED,
        )
        return self._run("phases", entry, run, token, **self._what(view, images))

    def paths(self, view: View, token: CancelToken | None = None) -> Iterator[ErfPathsResult]:
        """The gradient of the view's token split by the path through each block before it."""
        view, entry, images, at = self._detail(view)
        run = paths(
            entry.network,
            images,
            unit_name(view),
            *at,
            gates=view.erf_gates,
            provenance=entry.provenance,
            token=token,
        )
        return self._run("paths", entry, run, token, **self._what(view, images))

    # Inside

    def _detail(self, view: View) -> tuple[View, Entry, ImageSet, tuple[int, int]]:
        """What phases and paths look at: the resolved view, its own network, a few of its images,
        its token."""
        view = self._wb.resolve(view)
        assert view.y is not None and view.x is not None  # filled in by resolve
        images = self.images(view, min(view.erf_images, DETAIL_IMAGES))
        return view, self.entry(view, None), images, (view.y, view.x)

    def _field(
        self,
        view: View,
        rival: str | None,
        images: ImageSet,
        token: CancelToken | None,
    ) -> Iterator[ErfResult]:
        # A generator: what a network lacks is said when its first result is asked for.
        entry = self.entry(view, rival)
        target, note = self._target(view, entry.network, images)
        run = fields(
            entry.network,
            images,
            [target],
            definition=view.erf_definition,
            gates=view.erf_gates,
            provenance=entry.provenance,
            token=token,
            seed=SEED,
            group=self._group,
        )
        only = (
            replace(result, note=" ".join(filter(None, (note, result.note)))) for (result,) in run
        )
        yield from self._run("erf", entry, only, token, **self._what(view, images))

    def _run(
        self,
        kind: str,
        entry: Entry,
        run: Iterator[Any],
        token: CancelToken | None,
        **fields: Any,
    ) -> Iterator[Any]:
        """Items of a run from the cache or from the device; a stopped run leaves its last one."""
        key = self._key(kind, entry, **fields)
        if (kept := self._wb.results.get(key)) is not None:
            yield kept
            return
        last = None
        try:
            for item in self._wb.stepwise(run, token):
                last = self._wb.results.keep(key, item) if item.is_final else item
                yield last
        finally:
            if last is not None and not last.is_final:
                self._wb.results.put(_stopped(key), last)

    def _what(self, view: View, images: ImageSet) -> dict[str, Any]:
        return {
            "unit": unit_name(view),
            "y": view.y,
            "x": view.x,
            "of": view.model,  # the token is one of this model's map
            "definition": view.erf_definition,
            "gates": view.erf_gates,
            "images": images.digest,
        }

    def _key(self, kind: str, entry: Entry, **fields: Any) -> str:
        return run_key(kind, version=__version__, **entry.provenance.run_fields, **fields)

    def _target(self, view: View, network: Network, images: ImageSet) -> tuple[Target, str]:
        """The unit and token of `network` at the view's image point, and what differs, in words."""
        height, width = self._wb.prepared(view).rgb.shape[:2]
        unit, note = unit_name(view), ""
        if unit not in {known.name for known in network.units()}:
            unit = f"stage{view.stage}"
            note = f"{network.label} has no {words(view)}; its stage output is shown."
        assert view.y is not None and view.x is not None
        point = self._own(view).grid(unit_name(view), height, width).centre(view.y, view.x)
        grid = network.grid(unit, height, width)
        token = [
            min(max(round((at - origin) / grid.stride), 0), n - 1)
            for at, origin, n in zip(point, grid.origin, (grid.rows, grid.columns), strict=True)
        ]
        return Target(unit, *token), note

    def _own(self, view: View) -> ScanNetwork:
        """The view's network, for its units and grids only."""
        return ScanNetwork(self._wb.weighted(view, "a"), short_name(view.model))

    def entry(self, view: View, rival: str | None) -> Entry:
        wb = self._wb
        if rival is None:
            return self._ours(view, "a")
        if rival == "scan":
            return self._ours(view, "b")
        if rival == "weights":
            choices.check_runnable(view.scan_b)
            model = models.with_scan(wb.weighted(view, "a"), view.scan_b)
            return self.entry_of(view, model, f", weights of {scan_short(view.scan_a)}")
        if rival == "random":
            return self._ours(replace(view, weights="random"), "a")
        if rival.startswith(TIMM):
            return self._timm(view, rival.removeprefix(TIMM))
        names = [choice.name for choice in wb.weights(rival)]
        weights = "default" if "default" in names else "random"
        return self._ours(replace(view, model=rival, weights=weights, target=None), "a")

    def _ours(self, view: View, which: str) -> Entry:
        return self.entry_of(view, self._wb.twin(view, which))

    def entry_of(self, view: View, model: EfficientVMamba, words: str = "") -> Entry:
        """One of our models with what it runs on; `view` says its name and the photo, `words` what
        the legend adds."""
        info, spec = model.weights_info, str(model.scan_spec)
        made = replace(
            self._wb.provenance(view, "a"),
            weights=info.description,
            weights_sha256=info.sha256,
            is_random=info.is_random,
            trained_scan=info.trained_scan,
            scan=spec,
            seed=SEED,
        )
        label = f"{short_name(view.model)}, {scan_short(spec)}{words}"
        return Entry(ScanNetwork(model, f"{label}, random" if info.is_random else label), made)

    def _timm(self, view: View, name: str) -> Entry:
        wb = self._wb
        height, width = wb.prepared(view).rgb.shape[:2]
        network = wb.loaded.get(
            (TIMM, name, height, width),
            lambda: timm_network.load_timm(name, seed=SEED, size=(height, width), device=wb.device),
        )
        made = replace(
            wb.provenance(view, "a"),
            model=TIMM + name,
            weights=network.weights,
            weights_sha256=network.sha256,
            is_random=network.is_random,
            trained_scan=None,
            scan="",
            backend="torch",
            device=device_label(wb.device),
            seed=SEED,
        )
        return Entry(network, made)


def _stopped(key: str) -> str:
    """Where the last result of a run that was stopped is kept."""
    return f"stopped {key}"


def unit_name(view: View) -> str:
    """ "stage2" or "stage2.block1.scan": the unit of the view among all of its network."""
    return f"stage{view.stage}" + ("" if view.erf_unit == "stage" else f".{view.erf_unit}")


def words(view: View) -> str:
    return f"{view.erf_unit.replace('block', 'block ').replace('.', ', ')} in stage {view.stage}"
