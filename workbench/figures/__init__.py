"""Results to pictures: panels for the page (plain JSON) and files (PNG)."""

from workbench.figures.attribution import attribution_panel
from workbench.figures.erf import erf_panel
from workbench.figures.profile import profile_panel
from workbench.figures.scan import scan_panel

__all__ = ["attribution_panel", "erf_panel", "profile_panel", "scan_panel"]
