"""The figures that nmflow is held to, each measured against its target: ``python -m benchmarks.targets``.

Whatever is compared is run in turn, and the median of the ratios counts. A target is met, not met, or not available.
"""
