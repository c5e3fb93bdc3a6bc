"""A pretrained sentence model and a small CNN pruned without training: ``python -m benchmarks.post_training.run``."""
