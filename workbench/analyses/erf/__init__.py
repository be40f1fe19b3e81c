"""Effective receptive fields: definitions, engine, statistics, phases, paths, exact reach."""

from workbench.analyses.erf.definitions import DEFINITIONS, Definition
from workbench.analyses.erf.engine import Target, fields, input_gradients
from workbench.analyses.erf.metrics import (
    Ruler,
    centred_square,
    gaussian_fit,
    highest_density,
    mass_radius,
    metrics,
    radial_mass,
    total_variation,
)
from workbench.analyses.erf.paths import paths
from workbench.analyses.erf.phases import phases

__all__ = [
    "DEFINITIONS",
    "Definition",
    "Ruler",
    "Target",
    "centred_square",
    "fields",
    "gaussian_fit",
    "highest_density",
    "input_gradients",
    "mass_radius",
    "metrics",
    "paths",
    "phases",
    "radial_mass",
    "total_variation",
]
