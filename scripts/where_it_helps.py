"""Compares M-SVAG, with estimated and with exact gamma, to M-SGD: where does it help?

    python scripts/where_it_helps.py

Writes a figure, results.md, results.csv and results.json into the workdir. Exit code:
0 if all is done, else not 0.
"""

import command

if __name__ == "__main__":
    command.simulate("where_it_helps")
