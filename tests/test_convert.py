"""Runs of the authors' TensorFlow 1 package continue here where they stopped."""

import keras
import numpy as np
import pytest
import table
from oracle import Oracle

import svag_tf
from svag_tf import convert

tf = pytest.importorskip("tensorflow")

v1 = tf.compat.v1
SHAPES = {"dense/kernel": (3, 2), "dense/bias": (2,)}
BETA = 0.9
T = 5


def gradients(steps):
    rng = np.random.default_rng(0)
    return [
        {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
        for _ in range(steps)
    ]


def trained(variant="msvag", steps=T, beta=BETA):
    """Weights, m~ and v~ of a run: float64, from the paper's transcription."""
    oracles = {
        name: Oracle(variant, 0.1, beta, shape) for name, shape in SHAPES.items()
    }
    weights = {name: np.ones(shape) for name, shape in SHAPES.items()}
    for g in gradients(steps):
        for name, oracle in oracles.items():
            weights[name] = weights[name] - oracle.update(g[name])
    return weights, oracles


def write(folder, slots=("{}/MSVAG", "{}/MSVAG_1"), power=BETA ** (T + 1), **more):
    """A checkpoint of a graph with these variables, by TensorFlow 1's Saver."""
    weights, oracles = trained()
    arrays = dict(more)
    if power is not None:
        arrays["beta_power"] = power
    for name, oracle in oracles.items():
        arrays[name] = weights[name]
        arrays[slots[0].format(name)] = oracle.m_tilde
        arrays[slots[1].format(name)] = oracle.v_tilde
    with tf.Graph().as_default(), v1.Session() as session:
        for name, array in arrays.items():
            v1.get_variable(
                name,
                initializer=np.asarray(array, "float32"),
                use_resource=False,  # As TensorFlow 1 had them.
            )
        session.run(v1.global_variables_initializer())
        return v1.train.Saver().save(session, str(folder / "model.ckpt"), T)


def model_of(variant="msvag", **arguments):
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, name="dense")], name="mine"
    )
    model.compile(table.make(variant, learning_rate=0.1, **arguments), "mse")
    return model


@pytest.mark.parametrize("slots", [("{}/MSVAG", "{}/MSVAG_1"),
                                   ("{}/m_tilde", "{}/v_tilde"),
                                   ("{}/opt/m_tilde", "{}/opt/v_tilde")])  # fmt: skip
@pytest.mark.parametrize("folder", [False, True])
def test_goes_on_where_it_stopped(tmp_path, slots, folder):
    path = write(tmp_path, slots)
    model = model_of()
    convert.from_tf1_checkpoint(tmp_path if folder else path, model)
    assert int(model.optimizer.iterations) == T
    weights, oracles = trained()
    later = gradients(2 * T)[T:]
    for g in later:
        model.optimizer.apply([tf.constant(g[n], tf.float32) for n in SHAPES])
        for name, oracle in oracles.items():
            weights[name] = weights[name] - oracle.update(g[name])
    for name, weight in zip(SHAPES, model.get_weights(), strict=True):
        np.testing.assert_allclose(weight, weights[name], rtol=1e-5, atol=1e-6)


def test_svag_and_accumulation(tmp_path):
    model = model_of("svag", gradient_accumulation_steps=3)
    convert.from_tf1_checkpoint(write(tmp_path), model)
    assert int(model.optimizer.iterations) == T
    assert int(model.optimizer.variables[0]) == 3 * T


def test_names(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="other")])
    model.compile(svag_tf.MSVAG(), "mse")
    path = write(tmp_path)
    with pytest.raises(ValueError, match=r"no variable .*other/kernel.*Found: beta"):
        convert.from_tf1_checkpoint(path, model)
    names = dict(zip((v.path for v in model.weights), SHAPES, strict=True))
    convert.from_tf1_checkpoint(path, model, names)
    np.testing.assert_allclose(model.get_weights()[1], trained()[0]["dense/bias"], 1e-6)
    with pytest.raises(ValueError, match=r"must be paths of weights.*Received: wrong"):
        convert.from_tf1_checkpoint(path, model, {"wrong": "dense/kernel"})


@pytest.mark.parametrize(
    "power, more, updates",
    [
        (BETA, {}, 0),
        (np.float32(BETA) ** np.float32(700), {}, 699),
        (0.0, {}, 981),
        (0.0, {"global_step": 5000}, 5000),
    ],
)
def test_count_of_updates(tmp_path, power, more, updates):
    model = model_of()
    convert.from_tf1_checkpoint(write(tmp_path, power=power, **more), model)
    assert int(model.optimizer.iterations) == updates


def test_count_that_float32_products_made():
    """As TensorFlow 1 made it: by one product a step, each rounded."""
    for beta in (0.5, 0.9, 0.99, 0.999):
        power = np.float32(beta)
        for t in range(1, 5000):
            power = np.float32(power * np.float32(beta))
            if power < np.finfo(np.float32).tiny:
                break
            assert convert._updates({"beta_power": power}, beta) == t


@pytest.mark.parametrize(
    "change, message",
    [
        ({"power": None}, "one beta_power. Found: none"),
        ({"power": 0.85}, r"power of beta=0.9.*another beta\? Found: 0.85"),
        ({"power": 1.5}, "power of beta=0.9"),
        ({"power": [0.9, 0.9]}, "Expected of beta_power: a number >= 0"),
        ({"power": 0.0, "global_step": -4}, "Expected of global_step: a number >= 0"),
        ({"slots": ("{}/a", "{}/b")}, "one pair of slots of dense/kernel"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, message):
    path, model = write(tmp_path, **change), model_of()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message) as error:
        convert.from_tf1_checkpoint(path, model)
    assert path in str(error.value)
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)
    assert int(model.optimizer.iterations) == 0


def test_what_is_no_number_is_refused(tmp_path, monkeypatch):
    path, model = write(tmp_path), model_of()
    arrays = convert._read(path) | {"dense/bias/MSVAG": np.array([b"a", b"b"])}
    monkeypatch.setattr(convert, "_read", lambda path: arrays)
    before = model.get_weights()
    with pytest.raises(ValueError, match="of dense/bias/MSVAG: real numbers"):
        convert.from_tf1_checkpoint(path, model)
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)


def test_damaged_file_or_another_model(tmp_path):
    path = write(tmp_path)
    with pytest.raises(ValueError, match=r"MSVAG or svag_tf.SVAG.*Received"):
        convert.from_tf1_checkpoint(path, model_of("mssd"))
    with pytest.raises(ValueError, match="without use_ema"):
        convert.from_tf1_checkpoint(path, model_of(use_ema=True))
    wide = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="dense")])
    wide.compile(svag_tf.MSVAG(), "mse")
    with pytest.raises(ValueError, match=r"dense/kernel: shape \(4, 2\). Found: \(3, "):
        convert.from_tf1_checkpoint(path, wide)
    data = tmp_path / f"model.ckpt-{T}.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[10] ^= 1
    data.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.ckpt-5 cannot be read"):
        convert.from_tf1_checkpoint(path, model_of())
