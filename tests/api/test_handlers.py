"""Page handlers without a server: views, focus, cancelled runs, errors that change nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from workbench.errors import BadInputError
from workbench.runtime import Workbench
from workbench.settings import Settings
from workbench.ui.handlers import MOST_PROBABLE, Handlers
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
    return wb.resolve(View(model="efficientvmamba_test", weights="random", size=128))


def event(**data: object) -> SimpleNamespace:
    return SimpleNamespace(_data=data, **data)


def change(handlers: Handlers, view: View, **changes: object) -> dict:
    fields = ("model", "weights", "scan_a", "scan_b", "scan_c", "stage", "size", "fit")
    values = {name: getattr(view, name) for name in fields} | {"target": MOST_PROBABLE} | changes
    return handlers.change(view, *values.values())


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
