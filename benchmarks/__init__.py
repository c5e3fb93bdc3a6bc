"""What a sceptic would run: `make bench`, or ``python -m benchmarks.`` run, targets, stages, rounds, report."""
