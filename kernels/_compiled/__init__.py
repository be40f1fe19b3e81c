"""The parts of `kernels.compiled`; users call that module."""
