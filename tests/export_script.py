"""Goes on with exported models in a process that has neither Keras nor svag_tf.

    python export_script.py FOLDER...

Each folder holds `exported/` and `data.npz`, batches by `<argument>/<number>`. Writes
the checkpoint `trained` and the logs of each step, `logs.json`, beside them.
"""

import json
import sys
from pathlib import Path


def main(folders):
    for name in ("keras", "svag_tf", "tf_keras"):
        sys.modules[name] = None  # Importing it fails.
    import numpy as np
    import tensorflow as tf

    for folder in map(Path, folders):
        loaded = tf.saved_model.load(str(folder / "exported"))
        batches: dict = {}
        for key, value in np.load(folder / "data.npz").items():
            argument, number = key.split("/")
            batches.setdefault(int(number), {})[argument] = tf.constant(value)
        logs = []
        for number in sorted(batches):
            found = loaded.signatures["train"](**batches[number])
            logs.append({key: float(value) for key, value in found.items()})
        (folder / "logs.json").write_text(json.dumps(logs))
        loaded.signatures["save"](path=tf.constant(str(folder / "trained")))


if __name__ == "__main__":
    main(sys.argv[1:])
