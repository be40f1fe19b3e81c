"""Start the workbench: `python app.py`, or `gradio app.py` while working on it."""

from __future__ import annotations

import sys
import threading

from workbench.security import launch_options, queue_options, quiet_environment
from workbench.settings import Settings

settings = Settings.from_args(sys.argv[1:]) if __name__ == "__main__" else Settings.from_env()
quiet_environment()  # before the first import of gradio

from workbench.runtime import Workbench  # noqa: E402
from workbench.ui.build import build_app, theme  # noqa: E402
from workbench.ui.components.plotly_panel import STYLES  # noqa: E402

wb = Workbench(settings)
demo = build_app(settings, wb).queue(**queue_options(settings))


def main() -> None:
    # Behind the stored first picture, so that the first live one need not wait for the compiler.
    threading.Thread(target=wb.warm_up, daemon=True).start()
    demo.launch(theme=theme(), css_paths=list(STYLES), **launch_options(settings))


if __name__ == "__main__":
    main()
