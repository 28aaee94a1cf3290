"""Writes one page on how noisy the gradients of a run, or of several, are.

    python scripts/report.py runs/mine runs/another

The same as `python -m svag_tf.report`; docs/telemetry.md says how to read it.
"""

from svag_tf.report import main

if __name__ == "__main__":
    main()
