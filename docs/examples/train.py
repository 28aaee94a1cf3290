"""docs/saving.md: trains and exports a model; later loads what it has learned.

python train.py exported
python train.py exported trained
"""

import sys

import keras
import numpy as np

import svag_tf

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((4,)),
        keras.layers.Dense(8, activation="relu"),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(3),
    ]
)
model.compile(
    svag_tf.MSVAG(keras.optimizers.schedules.CosineDecay(0.1, 100)),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
# The same batch as in train.c.
i, j = np.indices((8, 4))
x = ((5 * i + 3 * j) % 8 / 8).astype("float32")
y = np.arange(8) % 3


def train(steps):
    for _ in range(steps):
        model.reset_metrics()
        print(f"loss {model.train_on_batch(x, y):.6f}")


if len(sys.argv) == 2:
    train(3)
    svag_tf.export_trainable(model, sys.argv[1])
    print("exported")
train(5 if len(sys.argv) == 2 else 8)
here = [v.numpy() for v in (*model.weights, *model.optimizer.variables)]
print(f"{int(model.optimizer.iterations)} updates here")
if len(sys.argv) == 3:
    svag_tf.restore_trained(model, sys.argv[2])
    back = [v.numpy() for v in (*model.weights, *model.optimizer.variables)]
    print(f"{int(model.optimizer.iterations)} updates there")
    same = all((a == b).all() for a, b in zip(here, back, strict=True))
    print("the same, bit for bit" if same else "not the same")
