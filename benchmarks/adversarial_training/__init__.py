"""Parts of the benchmark of adversarial training."""
