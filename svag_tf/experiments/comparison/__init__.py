"""Optimizers compared: tuned learning rates, ranked results, published baselines."""
