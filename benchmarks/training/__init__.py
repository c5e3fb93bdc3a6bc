"""Training on handwritten digits, dense and sparse: ``python -m benchmarks.training.run``."""
