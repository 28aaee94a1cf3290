"""The paper's simulation "SGD against sign descent", on noisy quadratics.

    python scripts/noisy_quadratic.py

Writes figures, results.md, results.csv and results.json into the workdir;
docs/paper.md says how to read them. Exit code: 0 if all is done, else not 0.
"""

import command

if __name__ == "__main__":
    command.simulate("noisy_quadratic")
