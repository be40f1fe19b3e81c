"""Listings of compiled kernels for the browser, one lowering stage at a time.

`Listings` holds what the inspector showed last; `ServeListings` answers
`/kernel-listings/TARGET/CONFIGURATION/STAGE.json` from it, else from the cache on disk. It compiles
nothing: a request can only name what was compiled before.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterable
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from kernels import compiled
from workbench.cache import ResultCache
from workbench.errors import BadInputError
from workbench.kernel_results import Listing, ListingLine

LISTINGS_PATH = "/kernel-listings/"
SUFFIX = ".json"
KEPT_BYTES = 64 * 2**20  # of kernels, whose texts take up to 2 MB each; and of answers


class Listings:
    """Compiled kernels by target and configuration."""

    def __init__(self) -> None:
        self._kernels = ResultCache(KEPT_BYTES)
        self._answers = ResultCache(KEPT_BYTES)

    def keep(self, kernel: compiled.CompiledKernel) -> str:
        """The key of the kernel's listings, for `kernel`, `listing` and `listing_url`."""
        key = f"{kernel.target}/{kernel.config}"
        self._kernels.keep(key, kernel)
        return key

    def kernel(self, key: str) -> compiled.CompiledKernel:
        """BadInputError where no such kernel was compiled here."""
        kept: compiled.CompiledKernel | None = self._kernels.get(key)
        if kept is not None:
            return kept
        target, _, name = key.partition("/")
        try:
            found = compiled.cached(compiled.find(name, target), target)
        except compiled.CompileError as error:
            raise BadInputError(str(error)) from error
        if found is None:
            raise BadInputError(
                f"{name} was not compiled for {target} here, or it is no longer kept. Choose it "
                "in the inspector again."
            )
        return self._kernels.keep(key, found)

    def annotated(self, key: str, stage: str) -> compiled.Annotated:
        """One stage with its places; BadInputError where the kernel has no such stage."""
        kernel = self.kernel(key)
        known = compiled.stages(kernel)
        if stage not in known:
            raise BadInputError(
                f"{kernel.config} for {kernel.target} has no stage {stage[:60]!r}. "
                f"It has: {', '.join(known)}."
            )
        return compiled.annotate(kernel, stage)

    def listing(self, key: str, stage: str) -> Listing:
        """One stage with the place in the sources of each line."""
        found = self.annotated(key, stage)
        return Listing(
            stage=stage,
            files=found.files,
            lines=tuple(
                ListingLine(text=text, frames=frames, kind=kind, in_loop=in_loop)
                for text, frames, kind, in_loop in found.lines
            ),
            n_hidden=found.n_hidden,
        )

    def answer(self, key: str, stage: str) -> bytes:
        """The listing as gzipped JSON for the browser."""
        kept: bytes | None = self._answers.get(f"{key} {stage}")
        if kept is not None:
            return kept
        body = gzip.compress(_dump(stage, self.annotated(key, stage)), compresslevel=3)
        return self._answers.keep(f"{key} {stage}", body)


def listing_url(key: str) -> str:
    """Address of a kernel's listings without the stage: "/kernel-listings/sm_90/NAME/"."""
    return f"{LISTINGS_PATH}{quote(key)}/"


def _dump(stage: str, found: compiled.Annotated) -> bytes:
    """As kernel_listing.js reads it."""
    classes = list(compiled.CLASSES)
    number = {name: i for i, name in enumerate(classes)} | {"": -1}
    texts, frames, kinds, loops = zip(*found.lines, strict=True) if found.lines else ((),) * 4
    values = {
        "stage": stage,
        "files": found.files,
        "hidden": found.n_hidden,
        "text": "\n".join(texts),
        "frames": [list(itertools.chain.from_iterable(places)) or None for places in frames],
        "classes": classes,
        "kinds": [number[kind] for kind in kinds],
        "loops": list(_ranges(loops)),
    }
    return json.dumps(values, separators=(",", ":")).encode()


def _ranges(flags: Iterable[bool]) -> Iterable[list[int]]:
    """[first, last] of each run of true flags."""
    at = 0
    for flag, run in itertools.groupby(flags):
        n = len(list(run))
        if flag:
            yield [at, at + n - 1]
        at += n


class ServeListings:
    """Answers LISTINGS_PATH; the rest goes on."""

    def __init__(self, app: ASGIApp, listings: Listings) -> None:
        self.app = app
        self.listings = listings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = self.app
        if scope["type"] == "http" and scope["path"].startswith(LISTINGS_PATH):
            if scope["method"] in ("GET", "HEAD"):
                name = scope["path"].removeprefix(LISTINGS_PATH)
                answer = await run_in_threadpool(self._answer, name)
            else:
                answer = PlainTextResponse("Method Not Allowed", 405, {"Allow": "GET, HEAD"})
        await answer(scope, receive, send)

    def _answer(self, name: str) -> Response:
        target, _, rest = name.removesuffix(SUFFIX).partition("/")
        config, _, stage = rest.partition("/")
        try:
            body = self.listings.answer(f"{target}/{config}", stage)
        except BadInputError as error:
            return PlainTextResponse(str(error), status_code=404)
        headers = {"Content-Encoding": "gzip", "Cache-Control": "private, no-cache"}
        return Response(body, media_type="application/json", headers=headers)


# One server shows one process's kernels: the page's workbench fills it, its middleware reads it.
SHOWN = Listings()
