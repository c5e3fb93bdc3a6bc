"""Measuring solvers: a yardstick, contestants that run in turn with it, and rows of results.

The full benchmark of the repository (`benchmarks/`) and ``nmflow bench`` are both made of this.
"""
