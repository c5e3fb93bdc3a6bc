"""A pretrained language model pruned without training: ``python -m benchmarks.language.run``."""
