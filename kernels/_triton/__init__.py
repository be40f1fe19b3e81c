"""The Triton backend's parts; `kernels/triton_scan.py` is the module that others import."""
