"""The benchmark: what an optimizer step costs, beside its peers and the limit.

`measure.benchmark` is the whole of it. Every method is a row (`rows`), every set of
variables a case (`cases`). Rows live in server processes (`serving`), which all rows
of a case take turns to step, so that a noisy moment meets all of them alike.
"""
