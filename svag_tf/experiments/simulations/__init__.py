"""The paper's simulations: small problems with known exact values.

Each has a file or a folder of its own, and a script. `report` and `plots` are shared.
`simulate(config, workdir, command)` checks the config, which configs/ describes, writes
its figures, tables and findings into the workdir, and returns them. Before any work it
raises an `ExperimentError` if the config or the workdir cannot be used. `command` is
the command line, for the report.
"""
