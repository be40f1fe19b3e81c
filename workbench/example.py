"""`python -m workbench.example`: compute and store the example that a fresh page shows first.

Run it again whenever weights, analyses or figures change; the page marks it "stored example".
"""

from __future__ import annotations

import sys

from workbench import permalink
from workbench.bundle import compute_all
from workbench.export import save_results
from workbench.runtime import Workbench
from workbench.settings import Settings
from workbench.view import View


def main() -> int:
    settings = Settings.from_env()
    wb = Workbench(settings)
    view = wb.resolve(View())
    results = compute_all(wb, view)
    save_results(settings.example, results, extra={"link": permalink.write(view)})
    sys.stdout.write(f"{settings.example}: {settings.example.stat().st_size:,} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
