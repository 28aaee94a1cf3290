"""Runs an exported model in a process of its own, with TensorFlow alone.

    python exported_runner.py FOLDER INPUTS.npz RESULTS.npz [STEPS CHECKPOINT]

Reads the array `x`, writes the array `output`. With STEPS it trains as well, on x and
targets that it makes up and writes as `y`, and saves a checkpoint.
"""

import sys
from pathlib import Path

import numpy as np


def main(folder, inputs, results, steps="0", checkpoint=""):
    """Runs the model; see the module."""
    import tensorflow as tf

    x = np.load(inputs)["x"]
    lite = Path(folder, "model.tflite")
    if lite.exists():
        np.savez(results, output=run_lite(str(lite), x))
        return
    signatures = tf.saved_model.load(folder).signatures
    infer = signatures.get("infer") or signatures["serving_default"]
    (name,) = infer.structured_input_signature[1]
    (output,) = infer(**{name: tf.constant(x)}).values()
    found = {"output": output.numpy()}
    if int(steps):
        train = signatures["train"]
        found["y"] = y = targets(train.structured_input_signature[1]["y"], len(x))
        for _ in range(int(steps)):
            train(x=tf.constant(x), y=tf.constant(y))
        signatures["save"](path=tf.constant(checkpoint))
    np.savez(results, **found)


def run_lite(path, x):
    """Returns the output of a TensorFlow Lite model with one input and one output."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(path)
    (like,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(like["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(like["index"], x)
    interpreter.invoke()
    (output,) = interpreter.get_output_details()
    return interpreter.get_tensor(output["index"])


def targets(like, examples):
    """Makes up targets: labels 0 and 1, or normal numbers."""
    rng = np.random.default_rng(1)
    shape = [n or examples for n in like.shape]
    if like.dtype.is_floating:
        return rng.normal(size=shape).astype(like.dtype.as_numpy_dtype)
    return rng.integers(2, size=shape).astype(like.dtype.as_numpy_dtype)


if __name__ == "__main__":
    for name in ("keras", "svag_tf"):
        sys.modules[name] = None  # type: ignore[assignment]  # Importing it fails.
    main(*sys.argv[1:])
