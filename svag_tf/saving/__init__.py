"""Saves and restores state by variable path; backups, checkpoints and exports.

The optimizers hold an `OptimizerState`; this package does not import them.
"""
