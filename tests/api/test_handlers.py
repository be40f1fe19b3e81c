"""Page handlers without a server: views, focus, cancelled runs, errors that change nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from workbench.errors import BadInputError
from workbench.runtime import Workbench
from workbench.settings import Settings
from workbench.ui.build import (
    ATTRIBUTION_CONTROLS,
    ERF_CONTROLS,
    FIELD_CONTROLS,
    PROFILER_CONTROLS,
)
from workbench.ui.handlers import MOST_PROBABLE, NO_CONTRAST, Handlers
from workbench.ui.panels import ORDER, TITLES
from workbench.ui.state import Sessions
from workbench.view import TABS, View

REQUEST = SimpleNamespace(session_hash="s1", query_params={})


@pytest.fixture(scope="module")
def wb() -> Workbench:
    return Workbench(Settings())


@pytest.fixture
def handlers(wb: Workbench, monkeypatch: pytest.MonkeyPatch) -> Handlers:
    messages: list[str] = []
    monkeypatch.setattr("workbench.ui.handlers.warn", messages.append)
    handlers = Handlers(wb, Sessions())
    handlers.messages = messages  # type: ignore[attr-defined]
    return handlers


@pytest.fixture
def view(wb: Workbench) -> View:
    small = View(model="efficientvmamba_test", weights="random", size=128, erf_images=3)
    return wb.resolve(small)


def event(**data: object) -> SimpleNamespace:
    return SimpleNamespace(_data=data, **data)


def change(handlers: Handlers, view: View, **changes: object) -> dict:
    """As the page calls it: with every control of the view, some of them changed."""
    values: dict = {"target": MOST_PROBABLE, "view": view}
    fields = ("model", "weights", "scan_a", "scan_b", "scan_c", "stage", "size", "fit")
    values |= {name: getattr(view, name) for name in (*fields, *ERF_CONTROLS)}
    shown = handlers.attribution_updates(view)
    values |= {name: shown[name]["value"] for name in ATTRIBUTION_CONTROLS}
    values |= {name: getattr(view, name) for name in PROFILER_CONTROLS}
    values |= {name: shown[name]["value"] for name in FIELD_CONTROLS}
    assert changes.keys() <= values.keys()
    return handlers.change(*(values | changes).values())


def test_changing_the_stage_keeps_the_image_point(handlers: Handlers, view: View) -> None:
    picked = handlers.pick(view, event(stage=1, y=9, x=30))["view"]
    assert (picked.stage, picked.y, picked.x) == (1, 9, 30)
    third = change(handlers, picked, stage=3)["view"]
    assert (third.stage, third.y, third.x) == (3, 2, 7)


def test_a_scheme_of_the_table_goes_to_its_slot(handlers: Handlers, view: View) -> None:
    chosen = handlers.choose_scheme(view, event(id="scheme", scan="hilbert", slot="c"))["view"]
    assert chosen == replace(view, scan_c="hilbert")
    assert handlers.choose_scheme(view, event(scan="hilbert", slot="model"))["view"] == view
    assert handlers.choose_scheme(view, event(scan="helix", slot="a"))["view"] == view
    assert "helix" in handlers.messages[-1]
    assert change(handlers, chosen, scan_c="none")["view"].scan_c is None


@pytest.mark.parametrize(
    "data",
    [{"stage": 99}, {"stage": "x"}, {"stage": 2, "y": float("nan"), "x": 1e300}, {}, {"y": True}],
)
def test_a_nonsense_pick_leaves_a_valid_view(handlers: Handlers, view: View, data: dict) -> None:
    assert handlers.wb.resolve(handlers.pick(view, event(**data))["view"])


def test_an_unknown_name_keeps_the_old_view_and_says_why(handlers: Handlers, view: View) -> None:
    assert change(handlers, view, scan_a="es2d:step=0")["view"] == view
    assert handlers.messages
    event_ = SimpleNamespace(id="no-such-photo", _data={"id": "no-such-photo"})
    assert handlers.choose_photo(view, event_)["view"] == view


def test_another_model_takes_weights_that_it_has(handlers: Handlers, view: View) -> None:
    updates = change(handlers, view, model="efficientvmamba_base", weights="default")
    assert updates["view"].weights == "random"
    assert updates["view"].model == "efficientvmamba_base"


@pytest.mark.parametrize("tab", TABS)
def test_run_fills_the_tabs_panels_in_order(handlers: Handlers, view: View, tab: str) -> None:
    view = handlers.choose_tab(view, event(tab=tab))["view"]
    order = ORDER[tab]
    filled: list[str] = []
    waiting: list[set] = []
    for updates in handlers.run(view, {}, REQUEST):
        filled += [name for name in TITLES if name in updates]
        if "status" in updates:
            waiting.append(set(json.loads(updates["status"])["panels"]))
    assert list(dict.fromkeys(filled)) == list(order)
    assert not handlers.messages
    assert waiting[0] == set(order)
    assert waiting[-1] == set()


def test_a_second_run_shows_nothing_twice(handlers: Handlers, view: View) -> None:
    shown: dict = {}
    for updates in handlers.run(view, {}, REQUEST):
        shown = updates.get("shown", shown)
    again = [name for u in handlers.run(view, shown, REQUEST) for name in TITLES if name in u]
    assert not again


def test_stop_ends_a_run_and_clears_its_progress(handlers: Handlers, view: View) -> None:
    run = handlers.run(replace(view, photo="coffee"), {}, REQUEST)
    next(run)
    handlers.stop(REQUEST)
    rest = list(run)
    assert not any(name in updates for updates in rest for name in TITLES)
    assert json.loads(rest[-1]["status"])["panels"] == {}


def test_a_newer_run_ends_the_older_one_without_a_word(handlers: Handlers, view: View) -> None:
    old = handlers.run(replace(view, photo="rocket"), {}, REQUEST)
    next(old)
    new = handlers.run(view, {}, REQUEST)
    next(new)
    assert list(old) == []
    other = handlers.run(view, {}, SimpleNamespace(session_hash="s2", query_params={}))
    next(other)
    assert any("scan" in updates for updates in new), "another session must not stop this one"


def test_one_failing_panel_does_not_take_the_others(handlers, view, monkeypatch) -> None:
    def fail(*args: object) -> None:
        raise BadInputError("The photo is too small. Use a larger one.")

    monkeypatch.setattr(handlers.wb, "attribution", fail)
    panels: dict = {}
    for updates in handlers.run(view, {}, REQUEST):
        panels |= {name: json.loads(updates[name]) for name in TITLES if name in updates}
    assert panels["attribution"]["empty"]["text"] == "The photo is too small. Use a larger one."
    assert "maps" in panels["erf"]


def test_a_failing_field_fails_every_panel_that_it_fills(handlers, view, monkeypatch) -> None:
    def fail(*args: object) -> None:
        raise BadInputError("Every gradient is zero. Choose another token.")

    monkeypatch.setattr(handlers.wb.erf_lab, "compare", fail)
    panels: dict = {}
    for updates in handlers.run(replace(view, tab="erf"), {}, REQUEST):
        panels |= {name: json.loads(updates[name]) for name in TITLES if name in updates}
    for name in ("lab_erf", "lab_erf_curves", "lab_erf_numbers"):
        assert panels[name]["empty"]["text"].startswith("Every gradient is zero")
    assert "empty" not in panels["lab_erf_paths"]


def test_the_lab_of_fields_follows_its_controls(handlers: Handlers, view: View) -> None:
    wanted = {
        "erf_unit": "block1.scan",
        "erf_definition": "replknet",
        "erf_gates": "frozen",
        "erf_images": 5.0,
        "erf_rivals": ["weights", "timm:resnet18"],
        "erf_scale": "linear",
    }
    updates = change(handlers, view, **wanted)
    changed = updates["view"]
    assert changed.erf_rivals == ("weights", "timm:resnet18") and changed.erf_images == 5
    assert {"weights", "timm:resnet18"} <= {name for _, name in updates["erf_rivals"]["choices"]}
    assert "block1.scan" in {name for _, name in updates["erf_unit"]["choices"]}
    # A stage of convolutions has no scan path: its output is shown instead.
    assert change(handlers, changed, stage=3)["view"].erf_unit == "stage"
    assert change(handlers, changed, erf_rivals=["timm:../x"])["view"] == changed
    assert "timm:../x" in handlers.messages[-1]
    assert change(handlers, changed, erf_images=5001)["view"] == changed
    assert change(handlers, changed, erf_images=None)["view"] == changed


def test_the_lab_of_attributions_follows_its_controls(handlers: Handlers, view: View) -> None:
    names = handlers.wb.attribution_lab.classes(view)
    wanted = {
        "target": names[5],
        "contrast": names[7],
        "attr_method": "integrated_gradients",
        "attr_rival": "photo:coffee",
        "attr_channel": 3.0,
        "attr_sanity": True,
    }
    updates = change(handlers, view, **wanted)
    changed = updates["view"]
    assert (changed.target, changed.contrast, changed.attr_channel) == (5, 7, 3)
    assert changed.attr_rival == "photo:coffee" and changed.attr_sanity is True
    assert updates["contrast"]["value"] == names[7]
    listed = {name for _, name in updates["attr_rival"]["choices"]}
    assert {"", "scan", "efficientvmamba_tiny", "photo:coffee", "photo:chelsea"} <= listed
    assert [n for _, n in updates["attr_block"]["choices"]] == [1]
    # The form is the method's own.
    shown = {name for name in FIELD_CONTROLS if updates[name]["visible"]}
    assert shown == {"attr_field_steps", "attr_field_baseline"}
    assert updates["attr_field_steps"]["value"] == 32
    assert not handlers.messages


def test_fields_of_a_method_become_options_and_another_starts_anew(
    handlers: Handlers, view: View
) -> None:
    view = change(handlers, view, attr_method="smoothgrad")["view"]
    assert view.attr_options == ""
    changed = change(handlers, view, attr_field_samples=8, attr_field_noise=0.25)["view"]
    assert changed.attr_options == "samples=8,noise=0.25"
    # An emptied field is the method's default.
    assert change(handlers, changed, attr_field_samples=None)["view"].attr_options == "noise=0.25"
    assert change(handlers, changed, attr_field_samples=0)["view"] == changed
    assert "from 1 to 1024" in handlers.messages[-1]
    assert change(handlers, changed, attr_method="gradient_shap")["view"].attr_options == ""


def test_what_the_lab_of_attributions_cannot_have_is_said(handlers: Handlers, view: View) -> None:
    names = handlers.wb.attribution_lab.classes(view)
    bad = (
        {"target": names[5], "contrast": names[5]},
        {"attr_rival": "photo:nobody"},
        {"attr_rival": "timm:resnet18"},
        {"attr_channel": -1},
        {"attr_method": "deep_lift"},
    )
    for n, changes in enumerate(bad, start=1):
        assert change(handlers, view, **changes)["view"] == view
        assert len(handlers.messages) == n
    # Nothing was chosen, or nonsense came from the browser.
    same = {"contrast": None, "attr_rival": None, "attr_block": None, "attr_channel": float("nan")}
    assert change(handlers, view, **same)["view"] == view
    assert change(handlers, view, contrast=NO_CONTRAST)["view"] == view


def test_a_contrast_stays_with_its_classes(handlers: Handlers, view: View) -> None:
    names = handlers.wb.attribution_lab.classes(view)
    view = change(handlers, view, contrast=names[7], target=names[5])["view"]
    assert handlers.choose_photo(view, SimpleNamespace(id="coffee", _data={}))["view"].contrast is (
        None
    )
    other = change(handlers, view, contrast=names[7], model="efficientvmamba_tiny")["view"]
    assert other.contrast is None and other.target is None


def test_a_scheme_of_another_network_leaves_the_controls_alive(
    handlers: Handlers, view: View
) -> None:
    updates = change(handlers, view, scan_a="vim", target="tench", contrast="goldfish")
    assert updates["view"].scan_a.startswith("vim") and len(updates["contrast"]["choices"]) == 1001
    assert (updates["view"].target, updates["view"].contrast) == (0, 1)
    for panels in handlers.run(replace(updates["view"], tab="attribution"), {}, REQUEST):
        for name in set(panels) & set(ORDER["attribution"]):
            assert "another network" in json.loads(panels[name])["empty"]["text"]


def test_a_path_only_scheme_b_leaves_the_attention_of_a(handlers: Handlers, view: View) -> None:
    shown = replace(handlers.wb.resolve(replace(view, scan_b="vim")), tab="attribution")
    panels: dict = {}
    for updates in handlers.run(shown, {}, REQUEST):
        panels |= {name: json.loads(updates[name]) for name in TITLES if name in updates}
    assert set(panels) == set(ORDER["attribution"])
    assert not any("empty" in panel for panel in panels.values())


def test_a_set_of_photos_is_averaged_and_left_again(
    handlers: Handlers, view: View, tmp_path
) -> None:
    files = []
    for i in range(3):
        file = tmp_path / f"{i}.png"
        Image.fromarray(np.full((70, 90, 3), 40 * i, np.uint8)).save(file)
        files.append(str(file))
    (tmp_path / "notes.png").write_text("no picture")
    updates = handlers.upload_set(view, [*files, files[0], str(tmp_path / "notes.png")])
    assert len(updates["view"].erf_set) == updates["view"].erf_images == 3
    assert "notes.png is not a picture" in handlers.messages[-1]
    assert "3" in json.loads(updates["erf_set"])["rows"][0]["text"]
    left = handlers.clear_set(updates["view"])["view"]
    assert left.erf_set == () and left.erf_images == View().erf_images
    assert handlers.upload_set(view, [str(tmp_path / "notes.png")]) == {"view": view}


def test_load_restores_a_link_and_reports_the_rest(handlers: Handlers) -> None:
    query = {"model": "efficientvmamba_test", "weights": "random", "stage": "9", "image": "coffee"}
    updates = handlers.load(SimpleNamespace(session_hash="s", query_params=query))
    assert updates["view"].model == "efficientvmamba_test"
    assert updates["view"].photo == "coffee"
    assert updates["view"].stage == 2
    assert any("stage" in message for message in handlers.messages)


def test_messages_cannot_carry_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.ui import handlers

    seen: list[str] = []
    monkeypatch.setattr(handlers.gr, "Warning", seen.append)
    handlers.warn("<img src=x onerror=alert(1)>")
    assert seen == ["&lt;img src=x onerror=alert(1)&gt;"]


def test_kernels_are_chosen_from_the_lists_only(handlers: Handlers, view: View) -> None:
    plain = View()
    other = "chunks_forward-map-rank16-fp32-4x64x8"
    chosen = handlers.choose_kernel(view, event(do="kernel", a=other, target="sm_80"))["view"]
    assert (chosen.kern_a, chosen.kern_target, chosen.kern_b) == (other, "sm_80", "")
    # AMD ships another tile of it.
    amd = handlers.choose_kernel(chosen, event(do="kernel", a=other, target="gfx942"))["view"]
    assert amd.kern_target == "gfx942" and amd.kern_a.startswith("chunks_forward-map-rank16-fp32-")
    assert amd.kern_a in {c.name for c in handlers.wb.kernel_lab.choices("gfx942")}
    both = event(do="kernel", a=plain.kern_a, target="sm_90", b=other, target_b="gfx942")
    found = handlers.choose_kernel(view, both)["view"]
    assert found.kern_target_b == "gfx942" and found.kern_b == amd.kern_a
    assert not handlers.messages
    for bad in (
        {"a": "os.system", "target": "sm_90"},
        {"a": other, "target": "../sm_90"},
        {"a": other, "target": "sm_90", "b": "x" * 10_000},
    ):
        assert handlers.choose_kernel(view, event(do="kernel", **bad))["view"] == view
    assert len(handlers.messages) == 3
    assert handlers.choose_kernel(view, event())["view"] == view


def test_sliders_of_the_cost_model_are_kept(handlers: Handlers, view: View) -> None:
    let_go = {"device": "A100 80GB", "size": 512, "batch": 32, "step": 3}
    words = {"dtype": "float32", "passes": "train"}
    found = handlers.choose_kernel(view, event(do="what", **let_go, **words))["view"]
    assert {name: getattr(found, f"what_{name}") for name in (*let_go, *words)} == let_go | words
    for bad in ({"device": "abacus"}, {"size": 5}, {"batch": "many"}, {"passes": "up"}):
        kept = handlers.choose_kernel(view, event(do="what", **(let_go | words | bad)))["view"]
        assert kept == view or (bad == {"batch": "many"} and kept.what_batch == view.what_batch)
