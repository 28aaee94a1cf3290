"""Arguments: what is accepted, and what the error says about what is not."""

import inspect
import math
import re

import keras
import numpy as np
import pytest
import table
from keras import ops

import svag_tf

tf = pytest.importorskip("tensorflow")

CLASSES = [getattr(svag_tf, name) for name in svag_tf.__all__ if name.isupper()]
ADAPTED_SIGNS = [svag_tf.SVAS, svag_tf.MSVAS]

KERAS_DEFAULTS = {
    "weight_decay": None,
    "clipnorm": None,
    "clipvalue": None,
    "global_clipnorm": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
    "name": None,
}


def test_there_are_seven_classes():
    names = {"MSGD", "MSSD", "MSVAG", "MSVAS", "SSD", "SVAG", "SVAS"}
    assert {cls.__name__ for cls in CLASSES} == names
    assert all(issubclass(cls, keras.optimizers.Optimizer) for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES)
def test_signature(cls):
    """Our arguments, then exactly those that every optimizer of Keras has."""
    parameters = inspect.signature(cls).parameters
    defaults = {name: p.default for name, p in parameters.items()}
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values())
    assert 0 < defaults.pop("learning_rate") < 1
    assert defaults.pop("beta") == 0.9
    if cls in ADAPTED_SIGNS:
        assert defaults.pop("adaptation") == "gaussian"
    if cls in (svag_tf.SSD, svag_tf.MSSD):
        assert defaults.pop("aggregation") == "mean"
    if cls is svag_tf.MSVAG:
        assert defaults.pop("variance") == "time"
    assert defaults.pop("state_dtype") is None
    assert defaults.pop("jit_compile") == "auto"
    assert defaults.pop("sparse_updates") == "exact"
    assert defaults == KERAS_DEFAULTS
    of_keras = inspect.signature(keras.optimizers.SGD).parameters
    own = {"learning_rate", "momentum", "nesterov", "kwargs"}
    assert KERAS_DEFAULTS.keys() == of_keras.keys() - own


@pytest.mark.parametrize("cls", CLASSES)
def test_default_learning_rate_is_documented(cls):
    default = inspect.signature(cls).parameters["learning_rate"].default
    documented = re.search(
        r"learning_rate: .*?Defaults to\s+`([\d.e-]+)`", cls.__doc__, re.DOTALL
    )
    assert float(documented[1]) == default
    assert float(cls().learning_rate) == pytest.approx(default, rel=1e-7)


WRONG = [
    ("beta", 1.0, ValueError, "[0, 1)"),
    ("beta", 1.5, ValueError, "[0, 1)"),
    ("beta", -0.1, ValueError, "[0, 1)"),
    ("beta", math.nan, ValueError, "[0, 1)"),
    ("beta", "0.9", TypeError, "[0, 1)"),
    ("beta", None, TypeError, "[0, 1)"),
    ("beta", True, TypeError, "[0, 1)"),
    ("beta", 0.9 + 0j, TypeError, "[0, 1)"),
    ("beta", [0.9], TypeError, "[0, 1)"),
    ("learning_rate", -0.1, ValueError, "[0, inf)"),
    ("learning_rate", math.nan, ValueError, "[0, inf)"),
    ("learning_rate", math.inf, ValueError, "[0, inf)"),
    ("learning_rate", "0.1", TypeError, "[0, inf)"),
    ("learning_rate", None, TypeError, "[0, inf)"),
    ("learning_rate", True, TypeError, "[0, inf)"),
    ("learning_rate", [0.1], TypeError, "[0, inf)"),
    ("learning_rate", 1j, TypeError, "[0, inf)"),
    ("weight_decay", -1e-4, ValueError, "[0, inf)"),
    ("weight_decay", "1e-4", TypeError, "[0, inf)"),
    ("clipnorm", -1.0, ValueError, "[0, inf)"),
    ("clipvalue", math.nan, ValueError, "[0, inf)"),
    ("global_clipnorm", "1", TypeError, "[0, inf)"),
    ("state_dtype", "int32", ValueError, "float16, bfloat16, float32, float64"),
    ("state_dtype", "float31", ValueError, "float16, bfloat16, float32, float64"),
    ("jit_compile", "yes", ValueError, "'auto', True, False"),
    ("jit_compile", None, TypeError, "'auto', True, False"),
    ("sparse_updates", "eager", ValueError, "'exact', 'lazy'"),
    ("sparse_updates", True, TypeError, "'exact', 'lazy'"),
    ("state_dtype", 32, TypeError, "float16, bfloat16, float32, float64"),
]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name, value, error, valid", WRONG)
def test_wrong_argument(cls, name, value, error, valid):
    with pytest.raises(error) as raised:
        cls(**{name: value})
    message = str(raised.value)
    assert f"`{name}`" in message
    assert valid in message
    assert f"Received: {name}={value!r}" in message


@pytest.mark.parametrize("cls", ADAPTED_SIGNS)
@pytest.mark.parametrize(
    "value, error", [("laplace", ValueError), ("", ValueError), (None, TypeError)]
)
def test_wrong_adaptation(cls, value, error):
    with pytest.raises(error) as raised:
        cls(adaptation=value)
    message = str(raised.value)
    assert "`adaptation` must be one of 'gaussian', 'adam'" in message
    assert f"Received: adaptation={value!r}" in message


# Keras checks these itself, and says it in its own words.
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "arguments",
    [
        {"gradient_accumulation_steps": 1},
        {"use_ema": True, "ema_momentum": 1.5},
        {"use_ema": True, "ema_overwrite_frequency": -1},
        {"clipnorm": 1.0, "clipvalue": 1.0},
    ],
)
def test_wrong_keras_argument(cls, arguments):
    *_, (name, value) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        cls(**arguments)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", ["beta_1", "momentum", "epsilon", "decay", "lr"])
def test_unknown_argument(cls, name):
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{name}'"):
        cls(**{name: 0.9})


def test_only_the_sign_methods_know_an_adaptation():
    for cls in set(CLASSES) - set(ADAPTED_SIGNS):
        with pytest.raises(TypeError, match="adaptation"):
            cls(adaptation="adam")


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("value", [0, 1, 0.0, np.float32(0.5), np.int64(1)])
def test_numbers_of_all_kinds(cls, value):
    assert float(cls(learning_rate=value).learning_rate) == float(value)
    if value < 1:
        assert cls(beta=value).beta == float(value)


def steps_taken(optimizer, count, before_step=lambda t: None):
    """|theta's change| in each of `count` steps with gradient 1."""
    theta = keras.Variable(0.0)
    optimizer.build([theta])
    taken = []
    for t in range(count):
        before_step(t)
        before = float(theta)
        optimizer.apply([ops.convert_to_tensor(1.0)], [theta])
        taken.append(before - float(theta))
    return taken


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_schedule(variant):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [0, 2], [1.0, 0.5, 2.0]
    )
    taken = steps_taken(table.make(variant, 0.5, schedule), 5)
    np.testing.assert_allclose(taken, [1, 0.5, 0.5, 2, 2], 1e-6)


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_callable(variant):
    rate = tf.Variable(1.0)
    optimizer = table.make(variant, 0.5, lambda: rate)
    taken = steps_taken(optimizer, 3, lambda t: rate.assign(2.0**t))
    np.testing.assert_allclose(taken, [1, 2, 4], 1e-6)


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_learning_rate_can_be_set(variant):
    optimizer = table.make(variant, 0.5, 1.0)

    def set_rate(t):
        if t:
            optimizer.learning_rate = [0.5, np.float32(0.25), 0][t - 1]

    taken = steps_taken(optimizer, 4, set_rate)
    np.testing.assert_allclose(taken, [1, 0.5, 0.25, 0], 1e-6)


def test_learning_rate_set_takes_effect_in_a_traced_step():
    optimizer = table.make("msvag", 0.5, 1.0)
    theta = keras.Variable(0.0)
    optimizer.build([theta])
    step = tf.function(lambda: optimizer.apply([tf.constant(1.0)], [theta]))
    step()
    optimizer.learning_rate = 0.25
    step()
    assert float(theta) == pytest.approx(-1.25)
    assert step.experimental_get_tracing_count() == 1


def test_learning_rate_set_to_a_schedule_or_callable():
    optimizer = table.make("msvag", 0.5, 1.0)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [3.0, 0.5])

    def set_rate(t):
        if t == 1:
            optimizer.learning_rate = schedule
        if t == 3:
            optimizer.learning_rate = lambda: 4.0

    np.testing.assert_allclose(
        steps_taken(optimizer, 4, set_rate), [1, 3, 0.5, 4], 1e-6
    )


@pytest.mark.parametrize(
    "value, error",
    [
        (-0.1, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        ("0.1", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_learning_rate_set_wrong(value, error):
    optimizer = svag_tf.MSVAG(0.5)
    with pytest.raises(error) as raised:
        optimizer.learning_rate = value
    assert "`learning_rate`" in str(raised.value)
    assert "[0, inf)" in str(raised.value)
    assert f"Received: learning_rate={value!r}" in str(raised.value)
    assert float(optimizer.learning_rate) == 0.5


def test_number_of_gradients_must_be_that_of_variables():
    optimizer = svag_tf.MSVAG()
    a, b = keras.Variable(0.0), keras.Variable(0.0)
    optimizer.build([a, b])
    gradient = ops.convert_to_tensor(1.0)
    for arguments in ([[gradient]], [[gradient], [a, b]], [[gradient] * 3, [a, b]]):
        with pytest.raises(ValueError, match=r"Received: \d gradients?, 2 variables"):
            optimizer.apply(*arguments)
    assert float(a) == float(b) == 0.0


def test_adaptation_is_told_apart():
    """The two forms differ; neither is silently the other."""
    steps = {
        name: steps_taken(svag_tf.MSVAS(1.0, 0.5, name), 1)
        + list(np.ravel(table.run(f"msvas_{name}", 0.5, steps=5)[0]["theta"]))
        for name in ("gaussian", "adam")
    }
    assert not np.allclose(steps["gaussian"], steps["adam"], 1e-2)
