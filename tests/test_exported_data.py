"""An export takes data like that on which the model was trained."""

import re

import keras
import model_zoo as zoo
import numpy as np
import pytest
import tensorflow as tf
from model_zoo import LABELS, WEIGHTS, N, X, Y

import svag_tf
from svag_tf.saving import exported_data, exported_functions, trained_data

WIDE = LABELS.astype("int64")


def sparse():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def dense(loss=None, **compiled):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(svag_tf.MSVAG(0.1), loss or sparse(), **compiled)
    return model


def over_time():
    model = keras.Sequential([keras.Input((None, 2)), keras.layers.Dense(1)])
    model.compile(svag_tf.MSVAG(0.1), "mse")
    return model


def subclassed(**compiled):
    model = zoo.Net(3)
    model.compile(svag_tf.MSVAG(0.1), sparse(), **compiled)
    return model


def of_two():
    a, b = keras.Input((4,)), keras.Input((4,))
    both = keras.layers.Concatenate()([a, b])
    model = keras.Model([a, b], keras.layers.Dense(3)(both))
    model.compile(svag_tf.MSVAG(0.1), sparse())
    return model


def fit(x, y=None, sample_weight=None, **arguments):
    def train(model):
        data = {"x": x, "y": y, "sample_weight": sample_weight}
        model.fit(**data, batch_size=N, verbose=0, **arguments)

    return train


def on_batch(*data, **arguments):
    def train(model):
        model.train_on_batch(*data, **arguments)

    return train


def of_generator(*data, **arguments):
    def train(model):
        batches = (tuple(part[:n] for part in data) for n in (N, N - 1, N))
        model.fit(batches, verbose=0, **arguments)

    return train


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, i):
        return X[:N], LABELS[:N], WEIGHTS[:N]


def of_sequence(model):
    model.fit(Sequence(), verbose=0)


def exported(model):
    svag_tf.export_trainable(model, "exported")


def given(model, x=None, y=None, sample_weight=None):
    """Returns dtypes and shapes of the export's `train` by name; the form of data."""
    specified = exported_data.specified_by(x, y, sample_weight)
    steps = exported_functions._Steps(model, specified, None)
    return steps.form.length, trained_data.shown(steps.given)


XS, YS = "float32[any, 4]", "int32[any]"
T = np.ones((N, 3, 2), "float32")


@pytest.mark.parametrize(
    "build, trainings, expected",
    [
        (dense, [], (2, f"x={XS}, y=int64[any]")),
        (dense, [fit(X, LABELS)], (2, f"x={XS}, y={YS}")),
        (subclassed, [fit(X, LABELS)], (2, f"x={XS}, y={YS}")),
        (subclassed, [fit(X, LABELS[:, None])], (2, f"x={XS}, y=int32[any, 1]")),
        (subclassed, [fit(X.astype("float64"), WIDE)], (2, f"x={XS}, y=int64[any]")),
        (dense, [on_batch(X.astype("float16"), LABELS)],
         (3, f"x=float16[any, 4], y={YS}")),
        (dense, [on_batch(X, LABELS), fit(X[:N], LABELS[:N])], (2, f"x={XS}, y={YS}")),
        (subclassed, [of_generator(X, LABELS)], (2, f"x={XS}, y={YS}")),
        (subclassed, [of_sequence], (3, f"x={XS}, y={YS}, sample_weight=float32[any]")),
        (dense, [fit(X, LABELS, class_weight={0: 1.0, 1: 2.0, 2: 3.0})],
         (3, f"x={XS}, y={YS}, sample_weight=float32[any]")),
        # Sometimes with weights, sometimes without.
        (dense, [fit(X, LABELS), fit(X, LABELS, WEIGHTS)], (2, f"x={XS}, y={YS}")),
        (over_time, [fit(T, T[:, :, :1])],
         (2, "x=float32[any, any, 2], y=float32[any, any, 1]")),
        (over_time, [on_batch(T, T[:, :1])],  # Broadcast.
         (3, "x=float32[any, any, 2], y=float32[any, 1, 2]")),
        (of_two, [fit([X, X], LABELS), on_batch([X, X], LABELS)],
         (2, f"x=({XS!r}, {XS!r}), y={YS}")),
        # The export makes a step for Keras, for data that nobody described.
        (dense, [exported, fit(X, LABELS)], (2, f"x={XS}, y={YS}")),
        (dense, [exported, exported], (2, f"x={XS}, y=int64[any]")),
    ],
)  # fmt: skip
def test_is_what_it_was_trained_on(build, trainings, expected, tmp_path, monkeypatch):
    model = build()
    for i, train in enumerate(trainings):
        (tmp_path / f"{i}").mkdir()
        monkeypatch.chdir(tmp_path / f"{i}")
        train(model)
    assert given(model) == expected


@pytest.mark.parametrize(
    "compiled", [{"jit_compile": True}, {"steps_per_execution": 2}], ids=str
)
def test_however_the_steps_run(compiled):
    model = subclassed(**compiled)
    fit(X, LABELS)(model)
    assert given(model) == (2, f"x={XS}, y={YS}")


def test_what_is_said_wins():
    model = subclassed()
    fit(X, LABELS)(model)
    half = tf.TensorSpec((None, 4), "float16")
    assert given(model, x=half) == (2, f"x=float16[any, 4], y={YS}")
    assert given(model, y=WIDE) == (2, f"x={XS}, y=int64[any]")
    weighted = f"x={XS}, y={YS}, sample_weight=float32[any]"
    assert given(model, sample_weight=True) == (3, weighted)
    on_batch(X, LABELS, WEIGHTS.astype("float16"))(model)
    half = weighted.replace("weight=float32", "weight=float16")
    assert given(model, sample_weight=True) == (3, half)
    assert given(model, sample_weight=False) == (2, f"x={XS}, y={YS}")


def test_several_kinds_are_named_and_one_can_be_said():
    model = subclassed()
    fit(X, LABELS)(model)
    fit(X, WIDE)(model)
    on_batch(X.astype("float16"), WIDE)(model)
    kinds = (f"x={XS}, y={YS}", f"x={XS}, y=int64[any]", "x=float16[8, 4]")
    with pytest.raises(ValueError, match="several kinds") as caught:
        given(model)
    for kind in (re.sub("any", "8", kind) for kind in kinds):
        assert kind in str(caught.value).replace("[24", "[8")
    assert given(model, y=LABELS) == (2, f"x={XS}, y={YS}")
    with pytest.raises(ValueError, match="several kinds"):
        given(model, y=WIDE)
    assert given(model, X, WIDE) == (2, f"x={XS}, y=int64[any]")
    model.compile(model.optimizer, sparse())
    fit(X, WIDE)(model)
    assert given(model) == (2, f"x={XS}, y=int64[any]")


def test_with_and_without_targets():
    model = zoo.autoencoder()
    fit(X)(model)
    assert given(model) == (0, f"x={XS}")
    fit(X, Y)(model)
    with pytest.raises(ValueError, match="several kinds"):
        given(model)
    assert given(model, y=False) == (0, f"x={XS}")
    assert given(model, y=Y) == (2, f"x={XS}, y=float32[any, 1]")


def test_lengths_that_differ():
    """A subclassed model does not define its free dimensions; several trainings do."""
    model = zoo.Net()
    model.compile(svag_tf.MSVAG(0.1), "mse")
    for n in (3, 3, 5):
        x = np.ones((2, n, 4), "float32")
        model.train_on_batch(x, x[:, :, :1])
    assert given(model) == (3, "x=float32[any, any, 4], y=float32[any, any, 1]")


@pytest.mark.parametrize("trained", [True, False])
def test_what_leaves_no_record_must_be_said(trained, tmp_path):
    model = subclassed(run_eagerly=True)
    if trained:
        fit(X, LABELS)(model)
    with pytest.raises(ValueError, match=r"is not known: it .*x=\.\.\., y=\.\.\."):
        svag_tf.export_trainable(model, tmp_path)
    svag_tf.export_trainable(model, tmp_path, x=X, y=LABELS)
    loaded = tf.saved_model.load(str(tmp_path))
    loaded.signatures["train"](x=tf.constant(X), y=tf.constant(LABELS))


def test_data_that_is_not_dense():
    inputs = keras.Input((4,), sparse=True)
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile(svag_tf.MSVAG(0.1), "mse")
    with pytest.raises(ValueError, match=r"must be dense. Received: .*Make it dense"):
        given(model)
    model.train_on_batch(tf.sparse.from_dense(X), Y)
    with pytest.raises(ValueError, match="trained on x=SparseTensorSpec, y=float32"):
        given(model)


class OfRagged(zoo.Net):
    def train_step(self, data):
        x, y = data
        dense = x.to_tensor(shape=(None, 4)) if isinstance(x, tf.RaggedTensor) else x
        return super().train_step((dense, y))


def test_dense_data_of_a_model_that_was_trained_on_other():
    model = OfRagged(3)
    model.compile(svag_tf.MSVAG(0.1), sparse())
    ragged = tf.RaggedTensor.from_tensor(X[:N])
    model.fit(tf.data.Dataset.from_tensors((ragged, LABELS[:N])), verbose=0)
    with pytest.raises(ValueError, match="trained on x=RaggedTensorSpec, y=int32"):
        given(model)
    assert given(model, x=X) == (2, f"x={XS}, y={YS}")


@pytest.mark.parametrize("specified", [{"x": False}, {"x": True}, {"y": True}], ids=str)
def test_what_says_nothing_is_refused(specified):
    with pytest.raises(
        ValueError, match=f"Argument `{next(iter(specified))}` must be an"
    ):
        given(dense(), **specified)


def test_without_an_optional_input(tmp_path):
    """A part that is None stays None."""
    a = keras.Input((4,), name="a")
    b = keras.Input((4,), name="b", optional=True)

    class Sum(keras.layers.Layer):
        def call(self, a, b):
            return a if b is None else a + b

    summed = Sum()(a, b)
    model = keras.Model({"a": a, "b": b}, keras.layers.Dense(1)(summed))
    model.compile(svag_tf.MSVAG(0.1), "mse")
    model.train_on_batch({"a": X, "b": None}, Y)
    svag_tf.export_trainable(model, tmp_path)
    loaded = tf.saved_model.load(str(tmp_path))
    model.train_on_batch({"a": X, "b": None}, Y)
    loaded.signatures["train"](x_a=tf.constant(X), y=tf.constant(Y))
    loaded.train(x={"a": X, "b": None}, y=Y)
    model.train_on_batch({"a": X, "b": None}, Y)
    np.testing.assert_array_equal(
        loaded.infer(x={"a": X, "b": None}), model.predict_on_batch({"a": X, "b": None})
    )
