"""Exports and backups of typical user models need no further arguments."""

import re
import warnings

import keras
import model_zoo as zoo
import numpy as np
import pytest
import tensorflow as tf
from tiers import sampled

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
    """All batches of one size, as `fit` makes from arrays that split evenly."""
    data = zoo.DATA[build]
    data = data if len(data) > 1 else data[0]
    return tf.data.Dataset.from_tensor_slices(data).batch(zoo.N, drop_remainder=True)


def fit(model, build, **arguments):
    model.fit(dataset(build), verbose=0, **arguments)


def values(model):
    optimizers = [model.optimizer]
    if isinstance(model, zoo.GAN):
        optimizers = model.optimizers()
    elif isinstance(model.optimizer, zoo.Halves):
        optimizers = [model.optimizer, *model.optimizer.parts]
    elif isinstance(model, zoo.Contrastive):
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
    zoo.unseeded: {"evaluate"},
    zoo.vae: {"infer", "evaluate"},
    zoo.gan: {"infer", "evaluate"},
    zoo.gan_of_lists: {"infer", "evaluate"},
    zoo.gan_of_one: {"infer", "evaluate"},
    zoo.contrastive: {"infer", "evaluate"},
    zoo.of_records: {"infer", "evaluate"},
    zoo.of_four: {"infer", "evaluate"},
}
SAID = (zoo.autoencoder_with_loss, zoo.of_records, zoo.of_four)  # In a warning.


FAST = (zoo.guide, zoo.of_records)


@pytest.mark.parametrize(
    "build", sampled(FAST, zoo.DATA), ids=lambda build: build.__name__
)
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
    svag_tf.restore_trained(model, tmp_path / "trained")
    fit(model, build)
    assert_same(back, values(model))
    found = loaded.train_from(path=str(tmp_path / "trained"), **arguments,
                              to=str(tmp_path / "more"))  # fmt: skip
    assert int(found["step"]) == 2 * zoo.BATCHES + 1


SEEDED = [build for build in zoo.DATA if build is not zoo.unseeded]


@pytest.mark.parametrize(
    "build", sampled([zoo.gan], SEEDED), ids=lambda build: build.__name__
)
def test_backup_goes_on_bit_for_bit(build, tmp_path):
    model = make(build)
    fit(model, build, epochs=2)
    fit(make(build), build, callbacks=[BackupAndRestore(tmp_path, False)])
    back = make(build)
    fit(back, build, epochs=2, callbacks=[BackupAndRestore(tmp_path)])
    assert_same(back, values(model))


@pytest.mark.parametrize(
    "build",
    sampled(
        [zoo.guide], [zoo.gan, zoo.gan_of_lists, zoo.vae, zoo.subclassed, zoo.guide]
    ),
)
def test_not_trained_yet(build, tmp_path):
    """Given the data's specs, the export creates what `fit` would at its first step."""
    x, *y = zoo.DATA[build]
    model = make(build, built=False)
    with pytest.raises(ValueError, match="What the model takes is not known"):
        svag_tf.export_trainable(model, tmp_path / "exported")
    svag_tf.export_trainable(model, tmp_path / "exported", x, *y)
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    # In batches of several sizes, for which there is one step.
    dataset = tf.data.Dataset.from_tensor_slices((x, *y) if y else x).batch(7)
    model.fit(dataset, verbose=0)
    for batch in dataset:
        loaded.train(**dict(zip("xy", batch if y else [batch])))
    here = values(model)
    loaded.save(path=str(tmp_path / "trained"))
    svag_tf.restore_trained(model, tmp_path / "trained")
    assert_same(model, here)


@pytest.mark.exhaustive
def test_state_for_a_model_whose_layers_are_not_built(tmp_path):
    """An error with a remedy, and no change; for exports and backups."""
    build = zoo.gan_of_lists
    model = make(build)
    keep = BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    fit(model, build, callbacks=[keep])
    svag_tf.export_trainable(model, tmp_path / "exported")
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    loaded.save(path=str(tmp_path / "trained"))
    other = make(build, built=False)
    message = "If layers of this model are not built yet, build them first"
    with pytest.raises(ValueError, match=message):
        svag_tf.restore_trained(other, tmp_path / "trained")
    with pytest.raises(ValueError, match=message):
        fit(other, build, callbacks=[keep])
    assert not any(optimizer.built for optimizer in other.optimizers())
    other.discriminator(zoo.X), other.generator(zoo.X)
    svag_tf.restore_trained(other, tmp_path / "trained")
    assert_same(other, values(model))


@pytest.mark.exhaustive
@pytest.mark.parametrize("restore", ["export", "backup"])
def test_states_of_other_optimizers_are_refused(restore, tmp_path):
    """Another class, fewer optimizers, another optimizer's variables: each is named."""

    def gan(first=svag_tf.MSVAG, second=svag_tf.MSVAS, build=zoo.GAN):
        keras.utils.set_random_seed(0)
        model = build()
        model.compile(first(0.05), second(0.01), zoo.crossentropy())
        return model

    model = gan()
    keep = BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    fit(model, zoo.gan, callbacks=[keep])
    svag_tf.export_trainable(model, tmp_path / "exported")
    saved = str(tmp_path / "trained")
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    loaded.save(path=saved)
    swapped = gan(svag_tf.MSVAS, svag_tf.MSVAG)
    fewer = gan(build=zoo.GANOfOne)
    trained_otherwise = gan()
    d, g = trained_otherwise.discriminator, trained_otherwise.generator
    trained_otherwise.d_optimizer.build(g.trainable_variables)
    trained_otherwise.g_optimizer.build(d.trainable_variables)
    for other, message in (
        (swapped, "Expected optimizers: .*d_optimizer: svag_tf>MSVAS, .*Found: "),
        (fewer, "Expected optimizers: .*d_optimizer: svag_tf>MSVAG. Found: "),
        (trained_otherwise, "Expected of optimizer"),
    ):
        before = [v.numpy() for v in other.variables]
        with pytest.raises(ValueError, match=f"another model or optimizer. {message}"):
            if restore == "export":
                svag_tf.restore_trained(other, saved)
            else:
                fit(other, zoo.gan, callbacks=[keep])
        for variable, value in zip(other.variables, before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.slow
def test_only_batches_of_the_size_that_a_step_needs(tmp_path):
    model = make(zoo.of_fixed_size)
    with pytest.raises(ValueError, match=r"train\(x=float32\[any, 4\], .* fails"):
        svag_tf.export_trainable(model, tmp_path / "a", zoo.X, zoo.Y)
    x, y = tf.TensorSpec((5, 4)), tf.TensorSpec((5, 1))
    svag_tf.export_trainable(model, tmp_path / "a", x, y)
    loaded = tf.saved_model.load(str(tmp_path / "a"))
    loaded.train(x=zoo.X[:5], y=zoo.Y[:5])
    fit(model, zoo.of_fixed_size)
    svag_tf.export_trainable(model, tmp_path / "b")
    loaded = tf.saved_model.load(str(tmp_path / "b"))
    train = loaded.signatures["train"]
    assert train.structured_input_signature[1]["x"].shape == (zoo.N, 4)
    with pytest.raises(ValueError, match="fails"):
        svag_tf.export_trainable(model, tmp_path / "c", x=zoo.X)
