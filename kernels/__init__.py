"""The numeric engine: scan orders as tables, and the selective scan on every backend."""

from kernels.scan_order import SCHEMES, ScanOrder, ScanSpec, scan_order, scan_orders
from kernels.selective_scan import (
    backends,
    resolve_backend,
    scan2d,
    selective_scan,
    selective_scan_fn,
)

__all__ = [
    "SCHEMES",
    "ScanOrder",
    "ScanSpec",
    "backends",
    "resolve_backend",
    "scan2d",
    "scan_order",
    "scan_orders",
    "selective_scan",
    "selective_scan_fn",
]
