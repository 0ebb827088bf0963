"""Run the sparse numerics on a CPU (numba) or a GPU (Triton)."""
