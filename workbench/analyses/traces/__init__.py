"""Traces of torch.profiler in the Chrome trace format: read as a stream, told in tables."""

from workbench.analyses.traces.reader import read_trace

__all__ = ["read_trace"]
