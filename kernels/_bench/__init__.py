"""Parts of `python -m kernels.bench`: cases, contenders, the gate, limits, clocks, rows, tuning."""
