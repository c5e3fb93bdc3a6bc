"""Kernels: Numba and NumPy only, serial, without the interpreter's lock, on memory that the caller owns."""
