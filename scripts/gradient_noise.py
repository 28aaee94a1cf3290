"""Compares M-SVAG's estimates of gradient and noise with exact ones during training.

    python scripts/gradient_noise.py

Writes figures, results.md, results.csv and results.json into the workdir;
docs/results/gradient_noise.md says how to read them. Run again with the same flags
after an interruption, it resumes after the last measurement. Exit code: 0 if all is
done, else not 0.
"""

import command

if __name__ == "__main__":
    command.simulate("gradient_noise")
