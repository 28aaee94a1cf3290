"""One training run: its configuration, folder, loop, workers and export.

`train.train` runs all of it. Comparison, simulations and benchmark use it.
"""
