"""Experiments: data, problems, training runs and their plots.

The optimizer library never imports this package. It needs the extra
`svag_tf[experiments]`.
"""
