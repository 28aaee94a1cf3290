"""Experiments: data, problems, training runs and their plots.

The optimizer library never imports this package, which may use all of it. It needs the
extra `svag_tf[experiments]`. CONTRIBUTING.md has the map of its parts.
"""
