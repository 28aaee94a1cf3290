"""Draws the paper's factors of variance adaptation, and tests that they are optimal.

    python scripts/variance_adaptation.py

Writes figures, results.md, results.csv and results.json into the workdir;
docs/paper.md says how to read them. Exit code: 0 if all is done, else not 0.
"""

import command

if __name__ == "__main__":
    command.simulate("variance_adaptation")
