"""Every bad config is refused with the field, what it may be and what it was."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from svag_tf.experiments.config import differences, flatten, plain
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.training.config import FIELDS, checked

BAD = {
    "problem": ["mnist", ""],
    "seed": [-1, 2**32],
    "epochs": [0, -3],
    "batch_size": [0],
    "train_examples": [0],
    "dtype_policy": ["float8"],
    "jit_compile": ["yes"],
    "distribution": ["tpu", "Mirrored"],
    "replicas": [0, -1],
    "optimizer.aggregation": ["vote"],
    "optimizer.variance": ["space"],
    "optimizer.name": ["sgdd", "MSVAG"],
    "optimizer.learning_rate": [-0.1, float("nan"), float("inf")],
    "optimizer.beta": [1.0, -0.1],
    "optimizer.adaptation": ["erf"],
    "optimizer.state_dtype": ["int8"],
    "optimizer.momentum": [1.5],
    "optimizer.clipnorm": [0.0, -1.0],
    "optimizer.gradient_accumulation_steps": [1],
    "noise.preset": ["huge"],
    "noise.every": [0],
    "schedule.name": ["linear"],
    "schedule.warmup_epochs": [-1.0],
    "schedule.boundaries": [(2, 1), (0,), (1, 1), (1.5,), ("a",)],
    "schedule.factor": [0.0],
    "schedule.final_fraction": [1.5],
}


@pytest.mark.parametrize("name, value", [(n, v) for n in BAD for v in BAD[n]])
def test_a_bad_value_is_named(make_config, name, value):
    config = make_config(**{name: value})
    with pytest.raises(ExperimentError) as error:
        checked(config)
    message = str(error.value)
    assert message.startswith(name)
    assert FIELDS[name].expected in message
    assert f"Received: {name}={value!r}" in message


@pytest.mark.parametrize(
    "name, value",
    [("epochs", 2.5), ("epochs", True), ("epochs", None), ("optimizer.beta", "0.9"),
     ("optimizer.beta", True), ("problem", 3), ("schedule.boundaries", None)],
)  # fmt: skip
def test_a_wrong_type_is_named(make_config, name, value):
    config = make_config().to_dict()
    group, _, key = name.rpartition(".")
    (config[group] if group else config)[key] = value
    with pytest.raises(ExperimentError, match=f"^{name} must be .*{value!r}"):
        checked(config)


def test_unknown_and_missing_fields_are_named(make_config):
    config = make_config().to_dict()
    config["optimizer"]["betta"] = config["optimizer"].pop("beta")
    with pytest.raises(ExperimentError) as error:
        checked(config)
    assert "Unknown: optimizer.betta; missing: optimizer.beta" in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"schedule.name": "step"},
        {"schedule.boundaries": (1,)},
        {"schedule.factor": 0.5},
        {"schedule.final_fraction": 0.5},
        {"schedule.warmup_epochs": 3.0},
        {"optimizer.ema_momentum": 0.9},
        {"optimizer.ema_overwrite_frequency": 5, "optimizer.use_ema": False},
    ],
)
def test_fields_that_do_not_go_together(make_config, fields):
    with pytest.raises(ExperimentError) as error:
        checked(make_config(**fields))
    for name, value in fields.items():
        assert f"{name}={value!r}" in str(error.value)


@pytest.mark.parametrize("fields", [{"optimizer.name": "sgd"}, {"optimizer.beta": 0.0}])
def test_noise_needs_an_optimizer_that_holds_it(make_config, fields):
    checked(make_config(**{"noise.preset": "full"}))
    with pytest.raises(
        ExperimentError, match=r"noise.preset needs one of .*msvag.*adam"
    ):
        checked(make_config(**{"noise.preset": "full", **fields}))


def test_the_name_of_a_config_is_checked(load_config):
    with pytest.raises(ExperimentError, match=r"one of .*, digits, .*Received: digit$"):
        load_config("digit")


def test_a_text_in_streams_has_its_batch_size(load_config):
    config = load_config("tolstoi_char_rnn")
    config.batch_size = 64
    with pytest.raises(ExperimentError) as error:
        checked(config)
    assert "batch_size must be 50" in str(error.value)
    assert "problem='tolstoi_char_rnn', batch_size=64" in str(error.value)


def test_a_boundary_after_the_end(make_config):
    fields = {"schedule.name": "step", "schedule.boundaries": (3,)}
    with pytest.raises(ExperimentError, match=r"boundaries=\(3,\), epochs=3"):
        checked(make_config(**fields))


def test_the_result_is_frozen_and_typed_and_has_a_plain_form(make_config):
    fields = {"schedule.name": "step", "schedule.boundaries": [1, 2]}
    config = make_config(**fields).to_dict()
    config["optimizer"]["learning_rate"], config["schedule"]["warmup_epochs"] = 1, 0
    result = checked(config)
    hash(result)
    for part in (result, result.optimizer, result.noise, result.schedule):
        with pytest.raises(dataclasses.FrozenInstanceError):
            part.name = "other"
    assert result.schedule.boundaries == (1, 2)
    rates = (result.optimizer.learning_rate, result.schedule.warmup_epochs)
    assert rates == (1, 0) and [type(rate) for rate in rates] == [float, float]
    text = json.dumps(plain(result))
    assert plain(result) == json.loads(text) and '"boundaries": [1, 2]' in text
    assert checked(plain(result)) == checked(result) == result
    assert flatten(plain(result)).keys() == FIELDS.keys()


def test_differences_name_the_fields():
    old = {"a": 1, "b": {"c": 2, "gone": 1}}
    new = ConfigDict({"a": 1, "b": {"c": 3, "came": None}}).to_dict()
    assert differences(old, new) == [
        "b.c: 2 -> 3",
        "b.came: (absent) -> None",
        "b.gone: 1 -> (absent)",
    ]
