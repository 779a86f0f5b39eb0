"""Where `benchmarks/generalization.py` compares ways to train, and how it does so."""
