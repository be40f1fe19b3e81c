"""What Gradio leaves open, closed: hosts, cross-site requests, headers, body size, unused routes.

Measured on Gradio 6.31: any Host header is accepted, cross-site uploads are accepted, requests may
skip the queue, there is no content security policy, and run history and monitoring are on.
Everything here is plain ASGI, so that it guards every route, Gradio's own included. Use it as
`demo.queue(**queue_options(s)); demo.launch(**launch_options(s))` after `quiet_environment()`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workbench.perfetto import VIEWER_PATH, ServePerfetto, read_viewer, trace_files
from workbench.settings import Settings

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
# Starlette's and gradio_client's in-process test transports call themselves so.
TEST_NAME = "testserver"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# Form fields and names around an uploaded file.
BODY_MARGIN_BYTES = 2**20

# Gradio writes inline scripts and styles into its page and compiles the templates of gr.HTML with
# `Function`, so these two cannot be closed; what matters is that nothing is loaded from or sent to
# another host and that no other site frames the page.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "frame-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Frame-Options": "SAMEORIGIN",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}

API_PREFIX = "/gradio_api"
UPLOAD_ROUTE = "/upload"  # with or without the prefix
# Routes of Gradio that this app does not use. With or without the prefix of the API.
CLOSED_ROUTES = (
    "/monitoring",
    "/runs",
    "/run-history",
    "/profiling",
    "/deep_link",
    "/dev",
    "/proxy=",
    "/process_recording",
    "/vibe-edit",
    "/undo-vibe-edit",
    "/vibe-code",
    "/vibe-starter-queries",
)


class RefuseCrossSite:
    """Refuses requests that change something and were sent by a page of another origin.

    Browsers say where a request comes from in Sec-Fetch-Site; over plain http on a network they
    leave it out, and Origin is compared with Host instead. "same-site" is refused as well: another
    port of localhost is another program. Programs (curl, gradio_client) send neither and pass.
    """

    def __init__(self, app: ASGIApp, trusted_hosts: Iterable[str] = ()) -> None:
        self.app = app
        self.trusted_hosts = frozenset(trusted_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        changes_something = scope["type"] == "http" and scope["method"] not in SAFE_METHODS
        if changes_something and not self._is_own(Headers(scope=scope)):
            refusal = PlainTextResponse("Requests from other sites are refused.", status_code=403)
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_own(self, headers: Headers) -> bool:
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site in ("same-origin", "none")
        origin = headers.get("origin")
        if origin is None:
            return True
        parts = urlsplit(origin)
        # Behind a proxy Host may be an inner name; the outer one was named with --trusted-host.
        return parts.netloc == headers.get("host") or parts.hostname in self.trusted_hosts


class LimitBody:
    """Answers 413 to a body over `max_bytes`, also where its length was not announced.

    Uploaded files, which Gradio writes to disk as they come, may have `upload_bytes`.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, upload_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.upload_bytes = upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_upload = scope["path"].removeprefix(API_PREFIX) == UPLOAD_ROUTE
        max_bytes = self.upload_bytes if is_upload else self.max_bytes
        refusal = PlainTextResponse(
            f"The request is larger than {max_bytes / 2**20:.0f} MB. Send a smaller file.",
            status_code=413,
        )
        announced = Headers(scope=scope).get("content-length", "0")
        if not announced.isdecimal() or int(announced) > max_bytes:
            await refusal(scope, receive, send)
            return
        n_bytes = 0
        is_started = False

        async def counted_receive() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            # The application sees a client that went away, and stops reading.
            return {"type": "http.disconnect"} if n_bytes > max_bytes else message

        async def guarded_send(message: Message) -> None:
            nonlocal is_started
            if n_bytes <= max_bytes or is_started:
                is_started = True
                await send(message)

        try:
            await self.app(scope, counted_receive, guarded_send)
        except Exception:
            # Reading from a client that went away raises; the cause is known here.
            if n_bytes <= max_bytes or is_started:
                raise
        if n_bytes > max_bytes and not is_started:
            await refusal(scope, receive, send)


class CloseRoutes:
    """404 for the routes of Gradio that this app does not use."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].removeprefix(API_PREFIX)
            if any(path == r or path.startswith((r, r + "/")) for r in CLOSED_ROUTES):
                await PlainTextResponse("Not found", status_code=404)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class AddHeaders:
    """Adds HEADERS to every answer, refusals included; the viewer has a policy of its own."""

    def __init__(self, app: ASGIApp, viewer_policy: str) -> None:
        self.app = app
        self.viewer_headers = HEADERS | {"Content-Security-Policy": viewer_policy}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_viewer = scope["type"] == "http" and scope["path"].startswith(VIEWER_PATH)
        headers = self.viewer_headers if is_viewer else HEADERS

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        await self.app(scope, receive, send_with_headers)


def middleware(settings: Settings) -> list[Middleware]:
    """For `app_kwargs={"middleware": ...}`, outermost first."""
    from workbench.listings import SHOWN, ServeListings  # loads torch

    viewer = read_viewer()
    return [
        Middleware(AddHeaders, viewer_policy=viewer.policy),
        Middleware(TrustedHostMiddleware, allowed_hosts=list(_hosts(settings)), www_redirect=False),
        Middleware(CloseRoutes),
        Middleware(RefuseCrossSite, trusted_hosts=settings.trusted_hosts),
        Middleware(
            LimitBody,
            max_bytes=settings.max_upload_bytes + BODY_MARGIN_BYTES,
            upload_bytes=_largest_file(settings) + BODY_MARGIN_BYTES,
        ),
        Middleware(ServePerfetto, files=trace_files(settings), viewer=viewer),
        Middleware(ServeListings, listings=SHOWN),
    ]


def launch_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments for `demo.launch`; add theme, CSS and head to them."""
    return {
        "server_name": settings.host,
        "server_port": settings.port,
        "inbrowser": settings.browser,
        "share": False,
        "show_error": False,
        "allowed_paths": [],
        "max_file_size": _largest_file(settings),
        "strict_cors": True,
        "enable_monitoring": False,
        "run_history": False,
        "footer_links": ["api"],
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "app_kwargs": {"middleware": middleware(settings)},
    }


def queue_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments for `demo.queue`: nothing skips it, and it is bounded."""
    return {"api_open": False, "max_size": settings.queue_size}


def quiet_environment() -> None:
    """Keeps Gradio and the hub client from calling home. Before the first `import gradio`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_SHARE", "False")


def _largest_file(settings: Settings) -> int:
    """Bytes of one uploaded file; the photos' own, lower limit is checked where they are read."""
    return max(settings.max_upload_bytes, settings.max_trace_bytes)


def _hosts(settings: Settings) -> Iterable[str]:
    yield from LOOPBACK_NAMES
    yield TEST_NAME
    yield from settings.trusted_hosts
    # Gradio asks itself under the address it listens on.
    yield f"[{settings.host}]" if ":" in settings.host else settings.host
