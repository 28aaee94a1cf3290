"""Writes one page on how noisy the gradients of a run, or of several, are.

    python scripts/report.py runs/mine runs/another

The same as `python -m svag_tf.report`; docs/telemetry.md says how to read it.
"""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[0] = "-m"  # As by `python -m`: svag_tf then does without Keras.
    runpy.run_module("svag_tf.report", run_name="__main__", alter_sys=True)
