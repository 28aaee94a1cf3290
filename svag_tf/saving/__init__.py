"""State by the path of its variable, backups, checkpoints and exports.

The optimizers hold an `OptimizerState`; what is here does not import them.
"""
