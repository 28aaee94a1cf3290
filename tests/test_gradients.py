"""`gradient_statistics`: against closed forms and a loop, and its errors."""

import re

import gradient_checks
import keras
import numpy as np
import pytest
from gradient_checks import (
    assert_equal,
    cross_entropy,
    linear_data,
    linear_gradients,
    linear_model,
)

import svag_tf

tf = pytest.importorskip("tensorflow")

layers = keras.layers


def statistics(*arguments, **keywords):
    return svag_tf.gradient_statistics(*arguments, verbose=False, **keywords)


def loop(model, loss, x, y):
    """The obvious way: a tape and a batch of one for each example."""
    gradients = []
    for i in range(len(x)):
        with tf.GradientTape() as tape:
            value = loss(y[i : i + 1], model(x[i : i + 1], training=False))
        gradients.append(
            [
                tf.convert_to_tensor(g).numpy().astype(np.float64)
                for g in tape.gradient(value, model.trainable_variables)
            ]
        )
    return [np.stack(column) for column in zip(*gradients)]


@pytest.mark.parametrize("check", gradient_checks.CHECKS)
def test_checks(check):
    check()


def test_a_network_against_a_loop():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
            layers.DepthwiseConv2D(2, activation="gelu"),
            layers.LayerNormalization(),
            layers.Flatten(),
            layers.Dense(5, activation="tanh"),
            layers.Dense(3),
        ]
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(11, 6, 6, 2)).astype("float32")
    y = rng.integers(3, size=11)
    result = statistics(model, cross_entropy(), (x, y))
    assert_equal(result, loop(model, cross_entropy(), x, y), 2e-5)
    assert result.loss == pytest.approx(float(cross_entropy()(y, model(x))), rel=1e-5)


def test_sequences_and_the_loop_behind_them():
    """A recurrent layer cannot be vectorised on TensorFlow: a warning, and a loop."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(7, 3),
            layers.SimpleRNN(2),
            layers.Dense(1),
        ]
    )
    rng = np.random.default_rng(0)
    x, y = rng.integers(7, size=(6, 4)), rng.normal(size=(6, 1)).astype("float32")
    loss = keras.losses.MeanSquaredError()
    with pytest.warns(UserWarning, match="cannot be vectorised on the tensorflow"):
        result = statistics(model, loss, (x, y))
    assert_equal(result, loop(model, loss, x, y), 2e-5)


def test_float64():
    model, (x, y) = linear_model("float64"), linear_data()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64")
    assert_equal(statistics(model, loss, (x, y)), linear_gradients(model, x, y), 1e-13)


@pytest.mark.parametrize("kind", ["PyDataset", "Dataset", "generator", "list"])
def test_kinds_of_data(kind, capsys):
    model, (x, y) = linear_model(), linear_data()
    batches = [(x[i : i + 20], y[i : i + 20]) for i in range(0, 70, 20)]

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return len(batches)

        def __getitem__(self, index):
            return batches[index]

    data = {
        "PyDataset": Batches,
        "Dataset": lambda: tf.data.Dataset.from_tensor_slices((x, y)).batch(20),
        "generator": lambda: (batch for batch in batches),
        "list": lambda: batches,
    }[kind]()
    result = svag_tf.gradient_statistics(model, cross_entropy(), data)
    assert result.examples == 70
    assert_equal(result, linear_gradients(model, x, y))
    assert ("4/4" if kind != "generator" else "4/Unknown") in capsys.readouterr().out


def test_progress_bar(capsys):
    statistics(linear_model(), cross_entropy(), linear_data())
    assert capsys.readouterr().out == ""
    svag_tf.gradient_statistics(linear_model(), cross_entropy(), linear_data())
    assert "70/70" in capsys.readouterr().out


def test_sample_weights():
    model, (x, y) = linear_model(), linear_data()
    weight = np.random.default_rng(2).random(70)
    gradients = [
        g * weight.reshape(-1, *[1] * (g.ndim - 1))
        for g in linear_gradients(model, x, y)
    ]
    assert_equal(statistics(model, cross_entropy(), (x, y, weight)), gradients)


def test_several_inputs_and_a_variable_without_gradient():
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    model = keras.Model({"a": a, "b": b}, layers.Dense(1, use_bias=False)(a + b))
    model.unused = model.add_weight(shape=(3,))
    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(5, 2)).astype("float32") for name in "ab"}
    model.compile(loss="mse")
    result = statistics(model, None, (x, np.zeros((5, 1))))
    total = (x["a"] + x["b"]).astype(np.float64)
    kernel = model.layers[-1].kernel.numpy().astype(np.float64)
    shapes = {tuple(v.shape): i for i, v in enumerate(model.trainable_variables)}
    expected = 2 * (total @ kernel)[:, :, None] * total[:, :, None]
    i = shapes[2, 1]
    np.testing.assert_allclose(result.gradient[i], expected.mean(0), 1e-5)
    np.testing.assert_allclose(result.variance[i], expected.var(0), 1e-5)
    assert not result.gradient[shapes[3,]].any()


def test_mini_batch_variance_is_that_of_mini_batches():
    """All batches of two, with and without replacement, written out."""
    model, (x, y) = linear_model(), linear_data(6)
    result = statistics(model, cross_entropy(), (x, y))
    for g, with_, without in zip(
        linear_gradients(model, x, y),
        result.mini_batch_variance(2, replacement=True),
        result.mini_batch_variance(2),
    ):
        pairs = [(i, j) for i in range(6) for j in range(6)]
        means = [(g[i] + g[j]) / 2 for i, j in pairs]
        np.testing.assert_allclose(with_, np.var(means, axis=0), 1e-4, 1e-7)
        means = [(g[i] + g[j]) / 2 for i, j in pairs if i != j]
        np.testing.assert_allclose(without, np.var(means, axis=0), 1e-4, 1e-7)
    assert all(not v.any() for v in result.mini_batch_variance(6))
    for size in (0, 7):
        with pytest.raises(ValueError, match=r"in \[1, 6\].*batch_size=" + str(size)):
            result.mini_batch_variance(size)
    result.mini_batch_variance(7, replacement=True)


def test_simple_noise_scale():
    model, (x, y) = linear_model(), linear_data()
    kernel, bias = linear_gradients(model, x, y)
    g = np.concatenate([kernel.reshape(70, -1), bias], axis=1)
    result = statistics(model, cross_entropy(), (x, y))
    expected = g.var(0).sum() / np.square(g.mean(0)).sum()
    assert result.simple_noise_scale == pytest.approx(expected, rel=1e-5)


def test_nothing_of_the_model_changes():
    model = WithoutTraining()
    model(X)
    before = [w.copy() for w in model.get_weights()]
    statistics(model, cross_entropy(), linear_data())
    for a, b in zip(before, model.get_weights()):
        np.testing.assert_array_equal(a, b)


class Centred(layers.Layer):
    """Mixes the examples of a batch without keeping a state."""

    def call(self, x):
        return x - keras.ops.mean(x, axis=0)


class Unbuilt(keras.Model):
    pass


class WithoutTraining(keras.Model):
    """Its `call` has no argument `training`; Keras tells the layers within of it."""

    def __init__(self):
        super().__init__()
        self.bn, self.dense = layers.BatchNormalization(name="bn"), layers.Dense(3)

    def call(self, x):
        return self.dense(self.bn(x))


keras.utils.set_random_seed(0)  # For the models that the tests share.


def network(*middle):
    return keras.Sequential([keras.Input((4,)), *middle, layers.Dense(3)])


X, Y = linear_data(10)


def refused(changes, error, message):
    arguments = {"model": network(), "loss": cross_entropy(), "data": (X, Y), **changes}
    with pytest.raises(error, match=message):
        statistics(**arguments)


SUM = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
WITHOUT_VARIABLES = keras.Sequential([keras.Input((4,)), layers.Flatten()])
SUBCLASSED = WithoutTraining()
SUBCLASSED(X)
LSTM = keras.Sequential(
    [keras.Input(batch_shape=(5, 4, 1)), layers.LSTM(2, stateful=True, name="memory")]
)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"model": network(layers.BatchNormalization(name="bn")), "training": True},
            "training=True. Received: a state that changes.*, of bn$",
        ),
        (
            {"model": network(layers.Dropout(0.5, name="drop")), "training": True},
            "drop out at random.*Received: a state that changes.*, of drop$",
        ),
        ({"model": SUBCLASSED, "training": True}, "changes.*, of bn$"),
        ({"model": network(Centred())}, "must be the mean of the losses of its"),
        ({"model": LSTM}, "stateful=True remember.*the layers memory"),
        ({"model": Unbuilt(name="new")}, "must be built.*'new'"),
        ({"model": WITHOUT_VARIABLES}, "must have trainable variables"),
        ({"loss": SUM}, "'mean' or None.*Received: reduction='sum'"),
        ({"data": (X,)}, "must hold .x, y. or .*Received: 1 parts"),
        ({"data": (X, Y[:9])}, r"equally many.*\(10, 4\), \(9,\)"),
        ({"data": (X[:0], Y[:0])}, "at least one example"),
        ({"data": []}, "at least one example"),
        ({"data": (X, Y, np.ones(9))}, r"shape \(10,\), one for each.*\(9,\)"),
        ({"data": [X]}, "must hold .x, y..*Received: ndarray"),
        ({"memory": 419}, "at least 420, .*Received: memory=419"),
        ({"vectorized": "yes"}, "'auto', True or False. Received: vectorized='yes'"),
        (
            {"data": tf.data.Dataset.from_tensors((X, Y)).repeat()},
            "must be finite. Received: a data set that repeats",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(changes, message):
    refused(changes, ValueError, message)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": 3}, "`model` must be a keras.Model. Received: model=3"),
        ({"loss": None}, "`loss` must be .*loss=None"),
        ({"data": 3}, "`data` must be a tuple.*Received: int"),
        ({"memory": 1e9}, "`memory` must be an integer.*float"),
        ({"training": 1}, "`training` must be True or False. Received: training=1"),
    ],
)
def test_what_is_of_the_wrong_type(changes, message):
    refused(changes, TypeError, message)


def test_refused_in_a_strategys_scope(monkeypatch):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    monkeypatch.setattr(type(strategy), "num_replicas_in_sync", 2)
    with (
        strategy.scope(),
        pytest.raises(ValueError, match=r"outside of a strategy.*2 replicas"),
    ):
        statistics(network(), cross_entropy(), (X, Y))


def test_example_of_the_docstring_names_every_argument():
    arguments = svag_tf.gradient_statistics.__doc__.partition("Args:")[2]
    names = re.findall(r"^ {8}(\w+): ", arguments.partition("Returns:")[0], re.M)
    assert names == [
        "model", "loss", "data", "training", "memory", "vectorized", "verbose",
    ]  # fmt: skip
