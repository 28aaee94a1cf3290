"""Exports and backups of models as people write them: nothing has to be said."""

import re
import warnings

import keras
import model_zoo as zoo
import numpy as np
import pytest
import tensorflow as tf

import svag_tf
from svag_tf.callbacks import BackupAndRestore


def make(build, built=True):
    keras.utils.set_random_seed(0)
    model = build()
    if not built:
        return model
    x = tf.convert_to_tensor(zoo.X[:1])
    if isinstance(model, zoo.GAN):
        model.discriminator(x), model.generator(x)
    elif isinstance(model, zoo.Contrastive):
        model.probe(model.encoder(x))
    elif not isinstance(model, zoo.VAE):
        model(x)
    return model


def dataset(build):
    """All batches of one size, as `fit` makes of arrays that come out even."""
    data = zoo.DATA[build]
    data = data if len(data) > 1 else data[0]
    return tf.data.Dataset.from_tensor_slices(data).batch(zoo.N, drop_remainder=True)


def fit(model, build, **arguments):
    model.fit(dataset(build), verbose=0, **arguments)


def values(model):
    optimizers = [model.optimizer]
    if isinstance(model, zoo.GAN):
        optimizers = model.optimizers()
    if isinstance(model, zoo.Contrastive):
        optimizers = [model.encoder.my_optimizer, model.probe_optimizer]
    variables = [*model.variables, *(v for o in optimizers for v in o.variables)]
    return [v.numpy() for v in variables]


def assert_same(model, expected):
    for a, b in zip(values(model), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def named(build, batch):
    """A batch as the arguments of `train`, and by the names in its signature."""
    batch = batch if len(zoo.DATA[build]) > 1 else (batch,)
    if build is zoo.autoencoder_with_loss:
        (batch,) = batch
    arguments = dict(zip(("x", "y", "sample_weight"), batch))
    flat = {
        re.sub(r"\W", "_", "_".join([name, *map(str, path)])): leaf
        for name, argument in arguments.items()
        for path, leaf in keras.tree.flatten_with_path(argument)
    }
    return arguments, flat


WITHOUT = {  # What the models cannot do in Python either.
    zoo.autoencoder: {"evaluate"},
    zoo.autoencoder_with_loss: {"evaluate"},
    zoo.vae: {"infer", "evaluate"},
    zoo.gan: {"infer", "evaluate"},
    zoo.gan_of_lists: {"infer", "evaluate"},
    zoo.gan_of_one: {"infer", "evaluate"},
    zoo.contrastive: {"infer", "evaluate"},
    zoo.of_records: {"infer", "evaluate"},
    zoo.of_four: {"infer", "evaluate"},
}
SAID = (zoo.autoencoder_with_loss, zoo.of_records, zoo.of_four)  # In a warning.


@pytest.mark.parametrize("build", zoo.DATA, ids=lambda build: build.__name__)
def test_goes_on_bit_for_bit(build, tmp_path):
    """All of its optimizers, random states and counters, there and back."""
    model = make(build, built=False)
    fit(model, build)
    before = values(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        svag_tf.export_trainable(model, tmp_path / "exported")
    said = [str(w.message) for w in caught if "has no signature" in str(w.message)]
    assert bool(said) == (build in SAID)
    assert_same(model, before)
    fit(model, build)
    here = values(model)
    assert any((a != b).any() for a, b in zip(here, before))
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    all_of_them = {"train", "infer", "evaluate", "save", "restore", "train_from"}
    assert set(loaded.signatures) == all_of_them - WITHOUT.get(build, set())
    for i, batch in enumerate(dataset(build)):
        arguments, flat = named(build, batch)
        if i % 2:
            loaded.train(**arguments)
        else:
            loaded.signatures["train"](**flat)
    saved = loaded.save(path=str(tmp_path / "trained"))
    assert int(saved["step"]) == 2 * zoo.BATCHES
    back = make(build)
    svag_tf.restore_trained(back, tmp_path / "trained")
    assert_same(back, here)
    fit(back, build)
    fit(model, build)
    assert_same(back, values(model))
    found = loaded.train_from(path=str(tmp_path / "trained"), **arguments,
                              to=str(tmp_path / "more"))  # fmt: skip
    assert int(found["step"]) == 2 * zoo.BATCHES + 1


@pytest.mark.parametrize("build", zoo.DATA, ids=lambda build: build.__name__)
def test_backup_goes_on_bit_for_bit(build, tmp_path):
    model = make(build)
    fit(model, build, epochs=2)
    fit(make(build), build, callbacks=[BackupAndRestore(tmp_path, False)])
    back = make(build)
    fit(back, build, epochs=2, callbacks=[BackupAndRestore(tmp_path)])
    assert_same(back, values(model))
