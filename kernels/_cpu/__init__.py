"""The CPU backend's inside: vectors, loops, programs, and what runs them. Use `kernels.cpu`."""
