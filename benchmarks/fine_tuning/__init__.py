"""Parts of `benchmarks/pretrained.py`."""
