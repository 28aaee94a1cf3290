"""The benchmark: the cost of an optimizer step, compared with peers and the limit.

`measure.benchmark` runs all of it. Every method is a row (`rows`), every set of
variables a case (`cases`). Rows live in server processes (`serving`). All rows of a
case take turns, so that a noisy moment affects all of them alike.
"""
