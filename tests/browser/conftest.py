"""A running app and a browser page that remembers everything it must not do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
START_SECONDS = 120  # a cold import on a busy machine
FINISHED_MS = 120_000  # all four panels, on two busy cores
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Panels of the open tab; every tab has four or five, which appear together.
VISIBLE = "[...document.querySelectorAll('.wb-panel')].filter((p) => p.offsetParent)"
ALLOWED_CONSOLE = ("The resource", "preload")  # a hint of Chromium on Gradio's own fonts


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start_app(log: Path, *flags: str) -> tuple[subprocess.Popen[bytes], str]:
    """`python app.py` in a process of its own, as a user starts it; its kept runs lie beside
    `log`, so that apps side by side do not list each other's."""
    port = free_port()
    data_home = log.with_name("data-home")
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port), *flags],
            cwd=ROOT,
            env=os.environ | {"XDG_DATA_HOME": str(data_home)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the app ended: {log.read_text()[-3000:]}")
        try:
            urllib.request.urlopen(url, timeout=2).read(1)
            return process, url
        except OSError:
            time.sleep(0.2)
    process.kill()
    raise RuntimeError(
        f"the app did not answer within {START_SECONDS} s: {log.read_text()[-3000:]}"
    )


@pytest.fixture(scope="session")
def app_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, url = start_app(tmp_path_factory.mktemp("app") / "app.log")
    yield url
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()


@pytest.fixture(scope="session")
def browser(chromium_path: str):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        instance = p.chromium.launch(executable_path=chromium_path, args=list(CHROMIUM_FLAGS))
        yield instance
        instance.close()


@dataclass
class Watched:
    """A page with what it logged and asked for."""

    page: object
    url: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def open(self, query: str = "", is_finished: bool = True) -> None:
        self.page.goto(f"{self.url}/{query}")
        self.page.wait_for_function(f"() => {VISIBLE}.length >= 3")
        if is_finished:
            self.finished()

    def finished(self) -> None:
        """Every panel of the open tab shows a live result and none is being computed."""
        self.page.wait_for_function(
            f"""() => {{
              const panels = {VISIBLE};
              return panels.length >= 3 && panels.every((p) => p.dataset.resultId
                && !/^(stored|waiting)-/.test(p.dataset.resultId)
                && !p.classList.contains('wb-busy'));
            }}""",
            timeout=FINISHED_MS,
        )

    def open_tab(self, label: str) -> None:
        self.page.get_by_role("tab", name=label, exact=True).click()
        tab = "" if label == "Overview" else label.lower()
        self.page.wait_for_function(
            "(tab) => (new URL(location.href).searchParams.get('tab') || '') === tab", arg=tab
        )
        self.finished()

    def ids(self) -> dict[str, str]:
        return self.page.evaluate(
            "() => Object.fromEntries([...document.querySelectorAll('.wb-panel')]"
            ".map((p) => [p.dataset.panel, p.dataset.resultId]))"
        )

    def state(self) -> dict:
        return self.page.evaluate("() => window.Workbench.state()")

    def text(self, panel: str) -> str:
        return self.page.inner_text(f".wb-panel[data-panel='{panel}']")

    def wait_changed(self, panel: str, before: str) -> None:
        self.page.wait_for_function(
            "([panel, before]) => document.querySelector(`.wb-panel[data-panel='${panel}']`)"
            ".dataset.resultId !== before",
            arg=[panel, before],
            timeout=FINISHED_MS,
        )
        self.finished()

    def overlay(self, panel: str, index: int = 0) -> str:
        """Pixels of a map's canvas, to see whether something was drawn on it."""
        return self.page.evaluate(
            "([panel, i]) => document.querySelectorAll("
            "`.wb-panel[data-panel='${panel}'] .wb-overlay`)[i].toDataURL()",
            [panel, index],
        )

    def point(self, panel: str, y: float, x: float, index: int = 0) -> tuple[float, float]:
        """Page position of the share (y, x) of a map's height and width."""
        box = (
            self.page.locator(f".wb-panel[data-panel='{panel}'] .wb-map").nth(index).bounding_box()
        )
        return box["x"] + x * box["width"], box["y"] + y * box["height"]


def watch(context, url: str) -> Watched:
    page = context.new_page()
    page.set_default_timeout(30_000)
    watched = Watched(page, url)

    def on_console(message) -> None:
        if message.type == "error" and not any(t in message.text for t in ALLOWED_CONSOLE):
            watched.errors.append(message.text)

    page.on("console", on_console)
    page.on("pageerror", lambda error: watched.errors.append(str(error)))
    page.on("request", lambda request: watched.requests.append(request.url))
    return watched


def assert_clean(watched: Watched) -> None:
    """No console error, no exception, no request to any other host."""
    host = urlsplit(watched.url).netloc
    foreign = [
        url
        for url in watched.requests
        if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).netloc != host
    ]
    assert not foreign, f"requests to other hosts: {foreign}"
    assert not watched.errors, f"console errors: {watched.errors}"


@pytest.fixture
def watched(browser, app_url: str) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    w = watch(context, app_url)
    yield w
    assert_clean(w)
    context.close()
