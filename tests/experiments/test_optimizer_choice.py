"""Optimizers by name, and schedules against their closed form."""

import math

import keras
import numpy as np
import pytest

import svag_tf
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.optimizers import (
    OPTIMIZERS,
    LinearWarmup,
    ScheduleConfig,
    build_optimizer,
    build_schedule,
)
from svag_tf.experiments.training.config import checked

CLASSES = {
    **{name.lower(): getattr(svag_tf, name) for name in svag_tf.optimizers.__all__},
    "sgd": keras.optimizers.SGD,
    "momentum": keras.optimizers.SGD,
    "adam": keras.optimizers.Adam,
    "lion": keras.optimizers.Lion,
}


def build(make_config, **fields):
    config = checked(make_config(**fields))
    return build_optimizer(config.optimizer, config.schedule, 3, 10)


@pytest.mark.parametrize("name", CLASSES)
def test_names_and_defaults(make_config, name):
    optimizer = build(make_config, **{"optimizer.name": name})
    # On PyTorch Keras makes subclasses of its own optimizers.
    assert isinstance(optimizer, CLASSES[name])
    assert type(optimizer).__name__ == CLASSES[name].__name__
    expected = CLASSES[name](name=optimizer.name).get_config()
    if name == "momentum":
        expected["momentum"] = 0.9
    assert optimizer.get_config() == expected


def test_no_name_is_left_out():
    assert OPTIMIZERS.keys() == CLASSES.keys()


@pytest.mark.parametrize(
    "name, fields",
    [
        ("msvag", {"beta": 0.5, "state_dtype": "bfloat16", "learning_rate": 0.2}),
        ("svas", {"adaptation": "adam", "weight_decay": 0.01}),
        ("ssd", {"clipnorm": 2.0, "gradient_accumulation_steps": 2}),
        ("momentum", {"momentum": 0.99, "clipvalue": 1.0}),
        ("adam", {"beta_1": 0.5, "beta_2": 0.6, "epsilon": 1e-3}),
        ("lion", {"beta_1": 0.5, "global_clipnorm": 1.0, "use_ema": True,
                  "ema_momentum": 0.5, "ema_overwrite_frequency": 7}),
    ],
)  # fmt: skip
def test_arguments_arrive(make_config, name, fields):
    flat = {f"optimizer.{key}": value for key, value in fields.items()}
    got = build(make_config, **{"optimizer.name": name, **flat}).get_config()
    for key, value in fields.items():
        assert got[key] == (pytest.approx(value) if key == "learning_rate" else value)


@pytest.mark.parametrize(
    "name, field, value",
    [
        ("adam", "beta", 0.9),
        ("sgd", "momentum", 0.9),
        ("msvag", "adaptation", "adam"),
        ("msvag", "beta_1", 0.9),
        ("lion", "epsilon", 1e-8),
        ("momentum", "state_dtype", "float32"),
    ],
)
def test_a_field_of_another_optimizer_is_an_error(make_config, name, field, value):
    fields = {"optimizer.name": name, f"optimizer.{field}": value}
    with pytest.raises(
        ExperimentError, match=f"'{name}' has no optimizer.{field}.*{field}={value!r}"
    ):
        build(make_config, **fields)


def test_what_the_class_refuses_is_told(make_config):
    fields = {"optimizer.clipnorm": 1.0, "optimizer.clipvalue": 1.0}
    with pytest.raises(ExperimentError, match="'msvag' refuses: Only one of"):
        build(make_config, **fields)


def rates(epochs=4, steps_per_epoch=5, peak=0.5, **fields):
    given = {"name": "constant", "warmup_epochs": 0.0, "boundaries": (),
             "factor": None, "final_fraction": None, **fields}  # fmt: skip
    built = build_schedule(ScheduleConfig(**given), peak, epochs, steps_per_epoch)
    optimizer = keras.optimizers.SGD(built)
    values = []
    for step in range(epochs * steps_per_epoch):
        optimizer.iterations.assign(step)
        values.append(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))
    return values


def test_constant():
    assert rates() == [0.5] * 20


def test_constant_with_warmup():
    expected = [0.5 * min(1, (t + 1) / 8) for t in range(20)]
    np.testing.assert_allclose(rates(warmup_epochs=1.6), expected, rtol=1e-6)


def test_step():
    expected = [0.5] * 5 + [0.05] * 10 + [0.005] * 5
    np.testing.assert_allclose(rates(name="step", boundaries=(1, 3)), expected)


def test_step_with_warmup_and_factor():
    expected = [0.5 * 0.2 ** (t >= 10) * min(1, (t + 1) / 5) for t in range(20)]
    got = rates(name="step", boundaries=(2,), factor=0.2, warmup_epochs=1.0)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("final", [None, 0.1])
@pytest.mark.parametrize("warmup", [0, 5])
def test_cosine(final, warmup):
    low = (final or 0) * 0.5
    expected = [
        0.5 * (t + 1) / warmup
        if t < warmup
        else low
        + (0.5 - low) * (1 + math.cos(math.pi * (t - warmup) / (20 - warmup))) / 2
        for t in range(20)
    ]
    got = rates(name="cosine", final_fraction=final, warmup_epochs=warmup / 5)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("inner", [0.3, keras.optimizers.schedules.CosineDecay(0.3, 9)])
def test_the_warmup_can_be_saved(inner):
    schedule = LinearWarmup(inner, 4)
    config = keras.saving.serialize_keras_object(schedule)
    again = keras.saving.deserialize_keras_object(config)
    for step in (0, 2, 8):
        assert float(again(step)) == float(schedule(step))
