"""What the example programs share: data, sampling, models, losses, metrics, training.

A program in `examples/` has that folder on `sys.path` and imports `from vqa.fragments import ...`.
Imports flow one way: data and models know nothing of training, training knows nothing of the
demo, and `torch_awp` knows nothing of any of this.
"""
