"""`python -m svag_tf.report`: one page on the noise of one run or several.

See docs/telemetry.md. It reads files and needs no Keras.
"""

from svag_tf.noise.report import main, write_report

__all__ = ["main", "write_report"]

if __name__ == "__main__":
    main()
