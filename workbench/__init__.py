"""EfficientVMamba Workbench: scan paths, receptive fields, attribution and profiles, linked."""

__version__ = "0.1.0"
