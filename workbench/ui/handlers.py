"""Event handlers of the page: thin, named, and the only place where errors become messages."""

from __future__ import annotations

import html
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from workbench import permalink
from workbench.analyses.attribution.methods import FIELDS, METHODS, check_parameters
from workbench.attribution_lab import parsed
from workbench.bundle import write_bundle
from workbench.errors import CancelledError, WorkbenchError
from workbench.labels import scan_label
from workbench.photos import prepare
from workbench.results import PredictionResult
from workbench.runtime import Workbench
from workbench.ui import texts
from workbench.ui.components.plotly_panel import dump
from workbench.ui.panels import ORDER, TITLES, TOGETHER, UPDATES, failed, focus_of
from workbench.ui.state import Sessions
from workbench.view import PROF_DTYPES, SIZES, View, token_in_stage

log = logging.getLogger(__name__)
TEST_MODEL = "efficientvmamba_test"  # for tests and the API, not for looking
MOST_PROBABLE = "most probable"
NO_SCAN = ("none", "none")
NO_CONTRAST = "no other class"
MAX_SET = 200  # photos of one uploaded set
Updates = dict[str, Any]


def warn(message: str) -> None:
    """A message over the page; Gradio renders it as HTML, and it may quote a file name."""
    gr.Warning(html.escape(message))


def session_of(request: gr.Request | None) -> str:
    return str(getattr(request, "session_hash", None) or "local")


class Handlers:
    """All handlers of one page. They return updates by component name; build.py maps the names."""

    def __init__(self, wb: Workbench, sessions: Sessions) -> None:
        self.wb = wb
        self.sessions = sessions

    def load(self, request: gr.Request) -> Updates:
        """A fresh page: the view of its link, and which parameters had to be ignored."""
        query = dict(request.query_params) if request else {}
        link = permalink.read(query, self.wb.resolve)
        for sentence in link.ignored:
            warn(sentence)
        return self._controls(self._resolved(link.view, View()))

    def change(
        self,
        target: str | None,
        view: View,
        model: str,
        weights: str,
        scan_a: str,
        scan_b: str,
        scan_c: str | None,
        stage: int,
        size: int,
        fit: str,
        erf_unit: str,
        erf_definition: str,
        erf_gates: str,
        erf_images: float | None,
        erf_rivals: list[str] | None,
        erf_scale: str,
        contrast: str | None,
        attr_method: str,
        attr_rival: str | None,
        attr_block: int | None,
        attr_channel: float | None,
        attr_sanity: bool,
        prof_subject: str,
        prof_axis: str,
        prof_passes: str,
        prof_batch: float | None,
        prof_dtype: str,
        prof_steps: float | None,
        *attr_fields: Any,
    ) -> Updates:
        """Any control of the page changed."""
        weight_names = [choice.name for choice in self.wb.weights(model)]
        if weights not in weight_names:
            weights = weight_names[0]
        y, x = view.y, view.x
        if (size, fit) != (view.size, view.fit):
            y = x = None
        elif stage != view.stage and y is not None and x is not None:
            y, x = (int(v) for v in token_in_stage(y, x, view.stage, stage))
        wanted = replace(
            view,
            model=model,
            weights=weights,
            scan_a=scan_a,
            scan_b=scan_b,
            scan_c=None if scan_c in (None, NO_SCAN[1]) else scan_c,
            stage=int(stage),
            size=int(size),
            fit=fit,
            y=y,
            x=x,
            target=self._class(view, model, weights, target),
            contrast=self._class(view, model, weights, contrast),
            attr_method=attr_method,
            # Another method starts from its own defaults.
            attr_options=self._options(attr_method, attr_fields)
            if attr_method == view.attr_method
            else "",
            attr_rival=attr_rival or "",
            attr_block=self._integer(attr_block, 1),
            attr_channel=self._integer(attr_channel),
            attr_sanity=bool(attr_sanity),
            prof_subject=prof_subject,
            # An axis that does not fit another subject gives way to the one that fits all.
            prof_axis=prof_axis
            if prof_axis in self.wb.profiler_lab.axes(prof_subject)
            else View().prof_axis,
            prof_passes=prof_passes,
            prof_batch=self._integer(prof_batch, view.prof_batch),
            prof_dtype=prof_dtype,
            prof_steps=self._integer(prof_steps, view.prof_steps),
            erf_unit=erf_unit,
            erf_definition=erf_definition,
            erf_gates=erf_gates,
            erf_images=self._integer(erf_images, view.erf_images),
            erf_rivals=tuple(erf_rivals or ()),
            erf_scale=erf_scale,
        )
        return self._controls(self._resolved(wanted, view))

    def again(self, target: str | None, view: View, *controls: Any) -> Updates:
        """Run: what the controls say; in the profiler, measured anew."""
        updates = self.change(target, view, *controls)
        if updates["view"].tab == "profiler":
            self.wb.profiler_lab.again(updates["view"])
        return updates

    def choose_tab(self, view: View, event: gr.EventData) -> Updates:
        tab = str((event._data or {}).get("tab"))
        return self._controls(self._resolved(replace(view, tab=tab), view))

    def choose_scheme(self, view: View, event: gr.EventData) -> Updates:
        """A scheme put into slot a, b or c from the table of schemes."""
        data = event._data or {}
        slot, spec = str(data.get("slot")), str(data.get("scan"))
        if slot not in ("a", "b", "c"):
            return {"view": view}
        return self._controls(self._resolved(view.with_scan(slot, spec), view))

    def choose_photo(self, view: View, event: gr.EventData) -> Updates:
        return self._photo(view, str(event.id))

    def upload(self, view: View, file: str | None) -> Updates:
        """A photo of the user's own; a file that is none leaves everything as it was."""
        if not file:
            return {}
        path = Path(file)
        try:
            photo = self.wb.photos.add(path, path.name)
        except WorkbenchError as error:
            warn(f"The photo was not used: {error}")
            return {"view": view}
        return self._photo(view, photo.id)

    def upload_set(self, view: View, files: list[str] | None) -> Updates:
        """Photos to average the field over; files that are none are named and left out."""
        found: list[str] = []
        problems: list[str] = []
        for file in (files or [])[:MAX_SET]:
            path = Path(file)
            try:
                found.append(self.wb.photos.add(path, path.name).id)
            except WorkbenchError as error:
                problems.append(str(error))
        if files and len(files) > MAX_SET:
            problems.append(f"{len(files)} files were given; the first {MAX_SET} were read.")
        if problems:
            warn(f"Not all photos were used: {' '.join(problems[:4])}")
        if not found:
            return {"view": view}
        wanted = replace(view, erf_set=tuple(dict.fromkeys(found)), erf_images=len(set(found)))
        return self._controls(self._resolved(wanted, view))

    def clear_set(self, view: View) -> Updates:
        """Back to seeded crops of the gallery."""
        plain = View()
        wanted = replace(view, erf_set=(), erf_images=plain.erf_images)
        return self._controls(self._resolved(wanted, view))

    def bring(self, view: View, file: str | None) -> Updates:
        """A trace of the user's own; it is read when its panel is drawn."""
        if not file:
            return {"view": view}
        try:
            token = self.wb.profiler_lab.bring(Path(file))
        except WorkbenchError as error:
            warn(f"The trace was not used: {error}")
            return {"view": view}
        return self._controls(self._resolved(replace(view, prof_trace=token), view))

    def clear_trace(self, view: View) -> Updates:
        """Back to a trace of the network in view."""
        return self._controls(self._resolved(replace(view, prof_trace=""), view))

    def import_run(self, view: View, file: str | None) -> Updates:
        """A run that was exported, here or elsewhere."""
        if file:
            try:
                run = self.wb.profiler_lab.runs.import_file(Path(file))
            except WorkbenchError as error:
                warn(f"The run was not imported: {error}")
            else:
                gr.Info(html.escape(f"“{run.name or run.title}” is in the list of runs."))
        return self._controls(self._resolved(view, view))

    def choose_runs(self, view: View, event: gr.EventData) -> Updates:
        """Compare, rename or delete runs of the list."""
        data = event._data or {}
        what, run = str(data.get("do")), str(data.get("id"))
        wanted = view
        try:
            store = self.wb.profiler_lab.runs
            if what == "compare":
                chosen = (str(data.get("a")), str(data.get("b")))
                wanted = replace(view, prof_runs=tuple(part for part in chosen if part))
            elif what == "rename":
                store.rename(run, str(data.get("name", "")))
            elif what == "delete":
                store.delete(run)
                wanted = replace(view, prof_runs=tuple(r for r in view.prof_runs if r != run))
        except WorkbenchError as error:
            warn(str(error))
            wanted = replace(view, prof_runs=())
        return self._controls(self._resolved(wanted, view))

    def choose_kernel(self, view: View, event: gr.EventData) -> Updates:
        """Another kernel in the inspector, or the sliders of the cost model let go."""
        data = event._data or {}
        wanted, lab = view, self.wb.kernel_lab
        if data.get("do") == "kernel":
            target = str(data.get("target") or view.kern_target)
            target_b = str(data.get("target_b") or "")
            a, b = str(data.get("a") or view.kern_a), str(data.get("b") or "")
            # A tile that the new target does not offer gives way to the one that ships for it.
            known = lab.targets()
            wanted = replace(
                view,
                kern_a=lab.alike(a, target) if target in known else a,
                kern_target=target,
                kern_b=lab.alike(b, target_b or target) if (target_b or target) in known else b,
                kern_target_b=target_b,
            )
        elif data.get("do") == "what":
            wanted = replace(
                view,
                what_device=str(data.get("device")),
                what_size=self._integer(data.get("size"), view.what_size),
                what_batch=self._integer(data.get("batch"), view.what_batch),
                what_step=self._integer(data.get("step"), view.what_step),
                what_dtype=str(data.get("dtype")),
                what_passes=str(data.get("passes")),
            )
        return self._controls(self._resolved(wanted, view))

    def export_run(self, view: View, event: gr.EventData) -> str:
        """One run as a file that `Import a run` takes."""
        folder = Path(tempfile.mkdtemp(prefix="workbench-"))
        try:
            run = self.wb.profiler_lab.runs.get(str((event._data or {}).get("id")))
            path = folder / f"run-{run.id}.zip"
            self.wb.profiler_lab.runs.export(run.id, path)
        except WorkbenchError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from None
        return str(path)

    def pick(self, view: View, event: gr.EventData) -> Updates:
        """A token picked in any panel, a stage picked in the profile, or Esc."""
        data = event._data or {}
        stage = self._integer(data.get("stage"), view.stage)
        y, x = (self._integer(data.get(name)) for name in ("y", "x"))
        if data.get("keep") and view.y is not None and view.x is not None:
            y, x = (int(v) for v in token_in_stage(view.y, view.x, view.stage, stage))
        if data.get("clear"):
            y = x = None
        block = self._integer(data.get("block")) or view.attr_block  # picked in the profile
        wanted = replace(view.with_focus(stage, y, x), attr_block=block)
        return self._controls(self._resolved(wanted, view))

    def clear_focus(self, view: View) -> Updates:
        return self._controls(self._resolved(view.with_focus(view.stage, None, None), view))

    def choose_target(self, view: View, event: gr.EventData) -> Updates:
        target = self._integer((event._data or {}).get("id"))
        return self._controls(self._resolved(replace(view, target=target), view))

    def stop(self, request: gr.Request) -> Updates:
        self.sessions.stop(session_of(request))
        return {}

    def run(self, view: View, shown: dict[str, str], request: gr.Request) -> Iterator[Updates]:
        """Recompute the open tab's panels in order; each appears as soon as it is ready."""
        session = session_of(request)
        token = self.sessions.start(session)
        shown = dict(shown or {})
        order = ORDER[view.tab]
        waiting = {name: {"text": "waiting"} for name in order}
        fixed = {"link": permalink.write(view), "focus": focus_of(self.wb, view)}
        try:
            yield {"status": dump(fixed | {"panels": waiting})}
            for name in order:
                for update in self._updates(name, view, token):
                    token.check()
                    changes: Updates = {}
                    panel = update.panel
                    if update.is_done:
                        waiting.pop(panel, None)
                    else:
                        waiting[panel] = {"text": update.text, "share": update.share}
                    if update.payload and shown.get(panel) != update.payload.get("result_id"):
                        shown[panel] = update.payload.get("result_id", "")
                        changes |= {panel: dump(update.payload), "shown": dict(shown)}
                    yield changes | {"status": dump(fixed | {"panels": waiting})}
                if name == order[0]:  # the path redraws at once; a forward pass comes after it
                    token.check()
                    yield self._header(view)
        except CancelledError:
            if self.sessions.is_current(session, token):  # else a newer run owns the page now
                yield {"status": dump(fixed | {"panels": {}})}
        finally:
            self.sessions.end(session, token)

    def export(self, view: View) -> str:
        """One zip with the open tab's numbers (JSON, npz) and pictures (PNG)."""
        folder = Path(tempfile.mkdtemp(prefix="workbench-"))
        try:
            return str(write_bundle(self.wb, view, folder, as_shown=True))
        except WorkbenchError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from None

    def _updates(self, name: str, view: View, token: Any) -> Iterator[Any]:
        """Updates of the panels that the computation called `name` fills."""
        if name not in UPDATES:  # filled together with an earlier one
            return
        try:
            yield from UPDATES[name](self.wb, view, token)
            return
        except CancelledError:
            raise
        except (WorkbenchError, ValueError) as error:
            text = str(error)
        except Exception:
            log.exception("panel %s of %s", name, view)
            text = "Something went wrong on our side; the server's log has the details."
        for panel in TOGETHER.get(name, (name,)):
            yield failed(panel, TITLES[panel], text)

    def _header(self, view: View) -> Updates:
        header = self.wb.describe(view)
        facts: list[dict[str, Any]] = [
            {
                "text": header.model_label.removeprefix("EfficientVMamba-"),
                "title": header.model_label,
            },
            {
                "text": header.weights_short,
                "title": header.weights_label,
                "tone": "warn" if header.is_random else None,
            },
            {"text": f"{header.device_label} ({header.backend_label})"},
        ]
        story = self.wb.weights_story(view.model)
        updates: Updates = {"header": dump(texts.header(facts, story))}
        try:
            prediction = self.wb.predict(view, "a")
        except (WorkbenchError, ValueError) as error:
            return updates | {"top": dump({"title": "Top 5", "text": str(error), "tone": "warn"})}
        return (
            updates
            | {"top": dump(texts.top_box(prediction, view.target))}
            | {"target": self._target_update(view, prediction)}
        )

    def model_list(self, shown: str) -> list[tuple[str, str]]:
        """(label, name) of the models; the one for tests only where a link opened it."""
        return [
            (m.label, m.name) for m in self.wb.models() if m.name != TEST_MODEL or m.name == shown
        ]

    def scan_list(self, *extra: tuple[str, str]) -> list[tuple[str, str]]:
        """(label, name) of the schemes; those that no model here runs say so."""
        listed = [
            (f"{choice.label} (path only)" if choice.why_not else choice.label, choice.name)
            for choice in self.wb.scans()
        ]
        return [*extra, *listed]

    def _scan_update(self, scan: str | None, *extra: tuple[str, str]) -> dict[str, Any]:
        """A list with the scan in it, whatever numbers a link gave it."""
        listed = self.scan_list(*extra)
        if scan and scan not in {name for _, name in listed}:
            listed.append((scan_label(scan), scan))
        return gr.update(choices=listed, value=scan or NO_SCAN[1])

    def _target_update(self, view: View, prediction: PredictionResult) -> dict[str, Any]:
        choices = [MOST_PROBABLE, *prediction.classes]
        value = MOST_PROBABLE if view.target is None else prediction.classes[view.target]
        return gr.update(choices=choices, value=value)

    def _class(self, view: View, model: str, weights: str, target: str | None) -> int | None:
        """Class index of a dropdown's text; None where the classes are another model's."""
        if target in (None, "", MOST_PROBABLE, NO_CONTRAST) or (model, weights) != (
            view.model,
            view.weights,
        ):
            return None
        classes = self.wb.attribution_lab.classes(view)
        return classes.index(target) if target in classes else None

    def _photo(self, view: View, photo: str) -> Updates:
        wanted = replace(view, photo=photo, y=None, x=None, target=None, contrast=None)
        return self._controls(self._resolved(wanted, view))

    def _resolved(self, wanted: View, current: View) -> View:
        try:
            return self.wb.resolve(wanted)
        except WorkbenchError as error:
            warn(str(error))
            return self.wb.resolve(current)

    def _controls(self, view: View) -> Updates:
        """Every control set to the view, so page, link and result never disagree."""
        weights = [(choice.label, choice.name) for choice in self.wb.weights(view.model)]
        return {
            "view": view,
            "model": gr.update(choices=self.model_list(view.model), value=view.model),
            "weights": gr.update(choices=weights, value=view.weights),
            "scan_a": self._scan_update(view.scan_a),
            "scan_b": self._scan_update(view.scan_b),
            "scan_c": self._scan_update(view.scan_c, NO_SCAN),
            "stage": view.stage,
            # A list with the size in it: a link may have another than the usual ones.
            "size": gr.update(choices=sorted({*SIZES, view.size}), value=view.size),
            "fit": view.fit,
            "photos": dump(self.photo_choices(view)),
            "focus": dump(texts.focus_box(view)),
            "erf_unit": gr.update(choices=self.unit_list(view), value=view.erf_unit),
            "erf_definition": view.erf_definition,
            "erf_gates": view.erf_gates,
            "erf_images": view.erf_images,
            "erf_set": dump(texts.set_box(view, self.wb.erf_lab.images(view).words)),
            "erf_rivals": gr.update(choices=self.rival_list(view), value=list(view.erf_rivals)),
            "erf_scale": view.erf_scale,
            "prof_set": dump(texts.trace_box(view)),
        } | {
            name: gr.update(**new)
            for name, new in {
                **self.attribution_updates(view),
                **self.profiler_updates(view),
            }.items()
        }

    def profiler_updates(self, view: View) -> dict[str, dict[str, Any]]:
        """Properties of the profiler's controls."""
        axes = self.wb.profiler_lab.axes(view.prof_subject)
        lists = {
            "prof_subject": texts.SUBJECTS,
            "prof_axis": axes,
            "prof_passes": texts.PASSES,
            "prof_dtype": {name: name for name in PROF_DTYPES},
        }
        return {
            name: {
                "choices": [(words, key) for key, words in listed.items()],
                "value": getattr(view, name),
            }
            for name, listed in lists.items()
        } | {name: {"value": getattr(view, name)} for name in ("prof_batch", "prof_steps")}

    def attribution_updates(self, view: View) -> dict[str, dict[str, Any]]:
        """Properties of the attribution lab's controls; a method's fields come from its table."""
        method = METHODS[view.attr_method]
        classes = self.wb.attribution_lab.classes(view)
        own = {field.name: field for field in method.fields}
        values = check_parameters(view.attr_method, parsed(view.attr_options))
        n_blocks = self.wb.weighted(view, "a").depths[view.stage - 1]
        contrast = NO_CONTRAST if view.contrast is None else classes[view.contrast]
        updates: dict[str, dict[str, Any]] = {
            "attr_method": {
                "choices": [(m.label, name) for name, m in METHODS.items()],
                "value": view.attr_method,
            },
            "contrast": {"choices": [NO_CONTRAST, *classes], "value": contrast},
            "attr_rival": {"choices": self.beside_list(view), "value": view.attr_rival},
            "attr_block": {
                "choices": [(str(n), n) for n in range(1, n_blocks + 1)],
                "value": view.attr_block,
            },
            "attr_channel": {"value": view.attr_channel},
            "attr_sanity": {"value": view.attr_sanity},
        }
        for name, listed in FIELDS.items():
            field = own.get(name, listed)
            update: dict[str, Any] = {
                "label": field.label,
                "value": values.get(name, field.default),
                "visible": name in own,
            }
            if field.kind == "choice":
                update["choices"] = list(field.choices)
            else:  # no limits: ours are said in words, with the method's name
                update["precision"] = 0 if field.kind == "int" else None
            updates[f"attr_field_{name}"] = update
        return updates

    @staticmethod
    def _options(method: str, values: Sequence[Any]) -> str:
        """The fields of the method as `View.attr_options` has them."""
        own = {field.name: field for field in METHODS[method].fields} if method in METHODS else {}
        given = dict(zip(FIELDS, values, strict=True))
        return ",".join(
            f"{name}={given[name]:g}" if isinstance(given[name], float) else f"{name}={given[name]}"
            for name in own
            if given[name] is not None
        )

    def beside_list(self, view: View) -> list[tuple[str, str]]:
        """(words, name) of what can stand beside: nothing, a network, a photo of the gallery."""
        networks = [(c.label, c.name) for c in self.wb.attribution_lab.rivals(view)]
        photos = [(f"photo: {p.title}", f"photo:{p.id}") for p in self.wb.photos.list()]
        found = [("nothing", ""), *networks, *photos]
        if view.attr_rival not in {name for _, name in found}:
            found.append((view.attr_rival, view.attr_rival))
        return found

    def unit_list(self, view: View) -> list[tuple[str, str]]:
        """(words, name) of what the stage's tokens can belong to."""
        return [(label, name) for name, label in self.wb.erf_lab.units(view)]

    def rival_list(self, view: View) -> list[tuple[str, str]]:
        """(words, name) of the networks to compare with; those that a link gave are among them."""
        listed = [(choice.label, choice.name) for choice in self.wb.erf_lab.rivals(view)]
        known = {name for _, name in listed}
        return [*listed, *((name, name) for name in view.erf_rivals if name not in known)]

    def photo_choices(self, view: View) -> dict[str, Any]:
        """The gallery, after the session's own photo where one is in view, and the crop in use."""
        photos = self.wb.photos.list()
        photo = self.wb.photos.get(view.photo)
        if photo.id not in {p.id for p in photos}:
            photos = (photo, *photos)
        prepared = prepare(photo, view.size, view.fit)
        height, width = prepared.rgb.shape[:2]
        _, _, rows, columns = prepared.crop
        words = [f"{columns} × {rows} of {photo.width} × {photo.height} px, as {width} × {height}"]
        if photo.note:
            words.append(photo.note)
        return {
            "preview": {
                "source": photo.thumbnail(220),
                "size": [photo.height, photo.width],
                "crop": list(prepared.crop),
                "text": "; ".join(words),
                "credit": f"{photo.title}, {photo.credit}" if photo.credit else photo.title,
            },
            "photos": [
                {
                    "id": p.id,
                    "title": p.title,
                    "credit": f"{p.credit} ({p.licence})" if p.licence else p.credit,
                    "thumbnail": p.thumbnail(96),
                }
                for p in photos
            ],
            "selected": photo.id,
        }

    @staticmethod
    def _integer(value: object, default: int | None = None) -> Any:
        """A number from the browser, which may send anything."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
            return default
        return int(value)
