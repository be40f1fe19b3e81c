"""The guard around Gradio, tested on a live server with a small app in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client

from workbench.errors import BadInputError
from workbench.photos import PhotoLibrary
from workbench.security import (
    HEADERS,
    LimitBody,
    launch_options,
    middleware,
    queue_options,
    quiet_environment,
)
from workbench.settings import MIB, Settings

SETTINGS = Settings(
    max_upload_bytes=MIB,
    max_trace_bytes=2 * MIB,
    trusted_hosts=("lab.example.org",),
    queue_size=2,
)
ROOT = Path(__file__).parents[2]
UPLOAD = "/gradio_api/upload"


def shout(text: str) -> str:
    return text.upper()


def wait_and_shout(text: str) -> str:
    time.sleep(1.5)
    return text.upper()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    quiet_environment()
    import gradio as gr

    with gr.Blocks(analytics_enabled=False) as demo:
        gr.api(shout, api_name="shout", concurrency_id="one", concurrency_limit=1)
        gr.api(wait_and_shout, api_name="slow", concurrency_id="one", concurrency_limit=1)
    demo.queue(**queue_options(SETTINGS))
    options = launch_options(SETTINGS) | {"server_port": None}
    _, address, _ = demo.launch(**options, prevent_thread_lock=True, quiet=True)
    try:
        yield address.rstrip("/")
    finally:
        demo.close(verbose=False)


def test_the_app_works_behind_the_guard(url: str) -> None:
    client = Client(url, verbose=False)
    assert client.predict("hello", api_name="/shout") == "HELLO"
    assert client.view_api(return_format="dict", print_info=False)["named_endpoints"]["/shout"]


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "lab.example.org.evil"]
)
def test_foreign_hosts_are_refused(url: str, host: str) -> None:
    assert httpx.get(url, headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:7860", "lab.example.org"])
def test_own_hosts_are_answered(url: str, host: str) -> None:
    assert httpx.get(f"{url}/gradio_api/info", headers={"Host": host}).status_code == 200


def upload(url: str, size: int = 10, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{url}/gradio_api/upload", files={"files": ("a.png", bytes(size))}, headers=headers
    )


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
    ],
    ids=["cross-site", "other port", "old browser", "old browser, other port", "sandboxed frame"],
)
def test_requests_from_other_sites_are_refused(url: str, headers: dict[str, str]) -> None:
    assert upload(url, **headers).status_code == 403


def test_own_requests_pass(url: str) -> None:
    assert upload(url).status_code == 200
    assert upload(url, **{"Sec-Fetch-Site": "same-origin", "Origin": "null"}).status_code == 200
    assert upload(url, Origin=url).status_code == 200
    assert upload(url, Origin="https://lab.example.org").status_code == 200


def test_large_uploads_are_refused(url: str) -> None:
    assert upload(url, 2 * MIB).status_code == 200  # a trace; photos have a limit of their own
    assert upload(url, 2 * MIB + 1).status_code == 413  # Gradio's own limit on one file
    answer = upload(url, 4 * MIB)
    assert answer.status_code == 413 and "larger than 3 MB" in answer.text
    answer = httpx.post(f"{url}/gradio_api/call/shout", content=bytes(2 * MIB + 1))
    assert answer.status_code == 413 and "larger than 2 MB" in answer.text


def test_a_photo_keeps_its_own_limit_where_a_trace_may_be_larger(tmp_path: Path) -> None:
    """Every photo of a page, of the API or of the command line goes through `PhotoLibrary.add`."""
    (tmp_path / "photo.png").write_bytes(bytes(21 * MIB))
    library = PhotoLibrary(Settings())
    with pytest.raises(BadInputError, match=r"photo\.png has 21\.0 MB; at most 20 MB"):
        library.add(tmp_path / "photo.png")
    with pytest.raises(BadInputError, match=r"21\.0 MB; at most 20 MB"):
        library.add(bytes(21 * MIB), "image sent to the API")
    places = ("cli.py", "attribution_lab.py", "ui/handlers.py", "ui/api.py")
    sources = {p: (ROOT / "workbench" / p).read_text(encoding="utf-8") for p in places}
    assert all("photos.add(" in text and "decode(data" not in text for text in sources.values())


def test_the_queue_cannot_be_skipped(url: str) -> None:
    for route in ("run", "api"):
        answer = httpx.post(f"{url}/gradio_api/{route}/shout", json={"data": ["a"]})
        assert answer.status_code == 404
    answer = httpx.post(f"{url}/gradio_api/run/predict", json={"data": ["a"], "fn_index": 0})
    assert answer.status_code == 404


def test_a_full_queue_refuses(url: str) -> None:
    def call() -> int:
        return httpx.post(f"{url}/gradio_api/call/slow", json={"data": ["a"]}).status_code

    codes = [call() for _ in range(5)]
    assert codes[0] == 200 and codes[-1] == 503


@pytest.mark.parametrize(
    "path",
    [
        "/monitoring",
        "/monitoring/summary",
        "/gradio_api/runs",
        "/gradio_api/run-history/buckets",
        "/gradio_api/deep_link",
        "/gradio_api/proxy=https://a.hf.space/",
        "/gradio_api/vibe-code/",
    ],
)
def test_unused_routes_are_closed(url: str, path: str) -> None:
    assert httpx.get(url + path).status_code == 404


@pytest.mark.parametrize("path", ["/", "/gradio_api/info", "/monitoring", "/no/such/page"])
def test_headers_are_on_every_answer(url: str, path: str) -> None:
    headers = httpx.get(url + path).headers
    assert {name: headers.get(name) for name in HEADERS} == HEADERS


def test_headers_name_no_other_host() -> None:
    policy = HEADERS["Content-Security-Policy"]
    assert "http" not in policy and "*" not in policy and "default-src 'self'" in policy


def run_asgi(
    app: Any, chunks: list[bytes], headers: list[tuple[bytes, bytes]], path: str = "/"
) -> list[Any]:
    """Messages that an ASGI application sends for a POST whose body comes in pieces."""
    sent: list[Any] = []
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    rest = iter(chunks)

    async def receive() -> dict[str, Any]:
        chunk = next(rest, None)
        if chunk is None:
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


async def read_all(scope: Any, receive: Any, send: Any) -> None:
    """Reads the whole body before it answers, as a form parser does."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("client went away")
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % size})


def test_an_unannounced_body_is_counted() -> None:
    app = LimitBody(read_all, max_bytes=100, upload_bytes=200)
    assert run_asgi(app, [bytes(60)], [])[0]["status"] == 200
    assert run_asgi(app, [bytes(60)] * 3, [])[0]["status"] == 413
    assert run_asgi(app, [], [(b"content-length", b"-5")])[0]["status"] == 413
    assert run_asgi(app, [bytes(60)] * 3, [], UPLOAD)[0]["status"] == 200
    assert run_asgi(app, [bytes(60)] * 4, [], UPLOAD)[0]["status"] == 413
    with pytest.raises(ConnectionResetError):
        run_asgi(LimitBody(broken, max_bytes=100, upload_bytes=100), [b"a"], [])


def guarded(settings: Settings) -> Any:
    app: Any = read_all
    for guard in reversed(middleware(settings)):
        app = guard.cls(app, *guard.args, **guard.kwargs)
    return app


@pytest.mark.parametrize("is_announced", [True, False], ids=["announced", "in pieces"])
def test_a_trace_of_50_mb_passes_all_guards_by_the_upload_route_alone(is_announced: bool) -> None:
    app, megabyte = guarded(Settings()), bytes(MIB)
    length = [(b"content-length", b"%d" % (50 * MIB))] if is_announced else []
    headers = [(b"host", b"127.0.0.1:7860"), *length]
    for path in ("/upload", UPLOAD):
        answer = run_asgi(app, [megabyte] * 50, headers, path)
        assert answer[0]["status"] == 200 and answer[1]["body"] == b"%d" % (50 * MIB)
    for path in ("/gradio_api/call/shout", "/gradio_api/upload/x", "/gradio_api/upload_progress"):
        assert run_asgi(app, [megabyte] * 50, headers, path)[0]["status"] == 413


def test_a_trace_over_its_limit_is_refused() -> None:
    headers = [(b"host", b"127.0.0.1"), (b"content-length", b"%d" % (101 * MIB + 1))]
    answer = run_asgi(guarded(Settings()), [], headers, UPLOAD)
    assert answer[0]["status"] == 413 and b"larger than 101 MB" in answer[1]["body"]
    small = Settings(max_trace_bytes=MIB)  # photos may always have theirs
    assert run_asgi(guarded(small), [bytes(20 * MIB)], headers[:1], UPLOAD)[0]["status"] == 200


async def broken(scope: Any, receive: Any, send: Any) -> None:
    raise ConnectionResetError("a defect of the application stays visible")


def test_settings_reach_the_server() -> None:
    options = launch_options(Settings(host="0.0.0.0", port=8000))
    assert (options["server_name"], options["server_port"]) == ("0.0.0.0", 8000)
    assert options["max_file_size"] == 100 * MIB
    assert launch_options(Settings(max_trace_bytes=MIB))["max_file_size"] == 20 * MIB
    assert options["allowed_paths"] == [] and options["run_history"] is False
    assert options["show_error"] is False and options["enable_monitoring"] is False
    assert queue_options(Settings()) == {"api_open": False, "max_size": 32}
