"""EfficientVMamba Workbench: scan paths, receptive fields, attribution and kernel profiles, linked."""

__version__ = "0.1.0"
