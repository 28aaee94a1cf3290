"""The paper's simulations: small problems with known exact values.

Each has a file or a folder of its own, and a script. `report` and `plots` are shared.
"""
