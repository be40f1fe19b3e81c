"""`make screenshots`: the pictures of the README and of our own eyes, from the running app.

Writes the pictures of the README into assets (light, 1440x900); with --all DIR one view in every
theme and size.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.browser.conftest import CHROMIUM_FLAGS, ROOT, start_app, watch
from tests.conftest import find_browser

# Picture -> the panel that stands at its top, where it is not the page's first.
SCROLLED = {"inspector.png": "lab_kern_code"}
SHOTS = (
    ("light", 1440, 900),
    ("dark", 1440, 900),
    ("light", 1280, 720),
    ("dark", 1280, 720),
)
README = {
    "screenshot.png": "?",
    "erf.png": "?tab=erf&image=coffee&stage=2&y=11&x=17&nets=scan,timm:tf_efficientnet_lite0",
    "attribution.png": "?tab=attribution&image=rocket&stage=2&beside=scan",
    "profiler.png": "?tab=profiler&stage=1",
    "kernels.png": "?tab=kernels&stage=1",
    "inspector.png": "?tab=kernels&stage=1&kernel_b=steps_forward-map-rank16-bf16-64x1x1",
}


def main() -> int:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", type=Path, metavar="DIR", help="every theme and size into DIR")
    parser.add_argument("--query", default="", help='view of the link, such as "?image=coffee"')
    args = parser.parse_args()
    executable = find_browser()
    if executable is None:
        print("No Chromium found: install the chromium package or set CHROMIUM=/path.")
        return 2
    process, url = start_app(Path(tempfile.mkdtemp()) / "app.log")
    try:
        with sync_playwright() as p:
            chromium = p.chromium.launch(executable_path=executable, args=list(CHROMIUM_FLAGS))
            shots = [(*shot, args.query or "?", f"page-{shot[0]}-{shot[1]}.png") for shot in SHOTS]
            if not args.all:
                shots = [(*SHOTS[0], query, name) for name, query in README.items()]
            for theme, width, height, query, name in shots:
                scale = 1 if args.all else 1.5
                context = chromium.new_context(
                    viewport={"width": width, "height": height}, device_scale_factor=scale
                )
                watched = watch(context, url)
                watched.open(f"{query}&__theme={theme}")
                folder = args.all or ROOT / "assets"
                folder.mkdir(parents=True, exist_ok=True)
                if panel := SCROLLED.get(name):
                    top = f"[data-panel='{panel}']"
                    watched.page.evaluate("(p) => document.querySelector(p).scrollIntoView()", top)
                watched.page.mouse.move(2, 2)
                watched.page.wait_for_timeout(800)
                watched.page.screenshot(path=folder / name)
                print(folder / name)
                context.close()
    finally:
        process.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
