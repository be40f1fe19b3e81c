"""EfficientVMamba Workbench: scan paths, receptive fields, attribution and profiles, linked."""

import os

# Waiting threads sleep instead of spinning: on a busy machine, a laptop with its browser on the
# same cores, the default view is several times faster. OpenMP reads it when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
