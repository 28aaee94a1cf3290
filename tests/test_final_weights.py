"""Final weights of every method are those that they were: on every backend.

`python tests/test_final_weights.py` writes the file, after a change that is meant to
change them. A rearrangement of the code is not.
"""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import table

PATH = Path(__file__).with_name("final_weights.json")
BETAS = (0.0, 0.3, 0.9, 0.99)
SHAPES = ((3, 2), (4,), ())


def trained(variant, beta):
    """The weights after 12 steps, one of them with a large gradient."""
    rng = np.random.default_rng(0)
    theta = [keras.Variable(rng.normal(size=s).astype("float32")) for s in SHAPES]
    optimizer = table.make(variant, beta, 0.05, weight_decay=0.01)
    for t in range(12):
        scale = 10.0 if t == 7 else 1.0
        gradients = [scale * (0.3 + rng.normal(size=s)) for s in SHAPES]
        gradients = [keras.ops.array(g.astype("float32")) for g in gradients]
        optimizer.apply(gradients, theta)
    return np.concatenate([keras.ops.convert_to_numpy(v).ravel() for v in theta])


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("variant", table.VARIANTS)
def test_final_weights(variant, beta):
    expected = json.loads(PATH.read_text())[f"{variant} {beta}"]
    np.testing.assert_allclose(trained(variant, beta), expected, 2e-6, 1e-6)


if __name__ == "__main__":
    weights = {
        f"{v} {b}": trained(v, b).tolist() for v in table.VARIANTS for b in BETAS
    }
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(w)}" for k, w in weights.items())
    PATH.write_text(f"{{\n{lines}\n}}\n")
