"""Compares optimizers: tuned learning rates, ranked results, published baselines."""
