"""Arguments: valid ones are accepted, and errors explain invalid ones."""

import copy
import inspect
import math
import pickle
import re

import keras
import numpy as np
import pytest
import table
from keras import ops
from oracle import METHODS

import svag_tf
from svag_tf import distribution

tf = pytest.importorskip("tensorflow")

CLASSES = table.classes()
# The arguments that not all methods have: default, another value, a wrong one, and the
# valid ones as errors name them.
OWN = {
    "adaptation": ("gaussian", "adam", "laplace", "one of 'gaussian', 'adam'"),
    "aggregation": (
        "mean",
        "majority_vote",
        "median",
        "one of 'mean', 'majority_vote'",
    ),
    "variance": ("time", "replicas", "none", "one of 'time', 'replicas'"),
}

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


def test_classes():
    names = {cls.__name__ for cls in CLASSES}
    assert names >= {"MSGD", "MSSD", "MSVAG", "MSVAS", "SSD", "SVAG", "SVAS"}
    assert names == {method.cls for method in METHODS.values()} <= set(svag_tf.__all__)
    assert all(issubclass(cls, keras.optimizers.Optimizer) for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES)
def test_signature(cls):
    """Our arguments, then exactly those that every optimizer of Keras has."""
    parameters = inspect.signature(cls).parameters
    defaults = {name: p.default for name, p in parameters.items()}
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values())
    assert 0 < defaults.pop("learning_rate") < 1
    assert defaults.pop("beta") == 0.9
    for name in cls.own_arguments():
        assert defaults.pop(name) == OWN[name][0]
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
    ("jit_compile", "yes", ValueError, "'auto', 'native', True, False"),
    ("jit_compile", None, TypeError, "'auto', 'native', True, False"),
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


# Keras checks these itself, with its own messages.
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


ONE_BETA = "one beta serves both averages"
OF_OTHERS = [
    ({"lr": 0.3}, "`lr`. Write learning_rate=0.3."),
    ({"alpha": 0.3}, "`alpha`. Write learning_rate=0.3."),
    ({"epsilon": 1e-7}, "`epsilon`. Leave it out: no method here can divide"),
    ({"eps": 1e-8}, "`eps`. Leave it out: no method here can divide"),
    ({"beta_1": 0.8}, f"`beta_1`. Write beta=0.8: {ONE_BETA}"),
    ({"b1": 0.8}, f"`b1`. Write beta=0.8: {ONE_BETA}"),
    ({"beta_2": 0.999}, f"`beta_2`. Leave it out: {ONE_BETA}"),
    ({"betas": (0.8, 0.999)}, f"`betas`. Write beta=0.8: {ONE_BETA}"),
    ({"momentum": 0.8}, "`momentum`. Write beta=0.8. Gradients are averaged"),
    ({"rho": 0.8}, "`rho`. Write beta=0.8. Our rho"),
    ({"nesterov": True}, "`nesterov`. Leave it out:"),
    ({"amsgrad": False}, "`amsgrad`. Leave it out:"),
    ({"fused": True}, "`fused`. Leave it out:"),
    ({"decay": 1e-4}, "`decay`. Write weight_decay=0.0001 if the weights"),
    ({"params": [1]}, "`params`. Leave it out. A Keras optimizer gets its variables"),
    ({"dtype": "float32"}, "`dtype`. Write state_dtype='float32'."),
    # Misspelt ones.
    ({"learningrate": 0.3}, "`learningrate`. Did you mean learning_rate=0.3?"),
    ({"learnig_rate": 0.3}, "`learnig_rate`. Did you mean learning_rate=0.3?"),
    ({"Beta": 0.8}, "`Beta`. Did you mean beta=0.8?"),
    ({"clip_norm": 1.0}, "`clip_norm`. Did you mean clipnorm=1.0?"),
    ({"state_type": "float32"}, "`state_type`. Did you mean state_dtype='float32'?"),
    ({"weightdecay": 0.1}, "`weightdecay`. Did you mean weight_decay=0.1?"),
    ({"xyz": 1}, "`xyz`. Its arguments are learning_rate, beta, "),
]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("arguments, instead", OF_OTHERS)
def test_arguments_of_other_optimizers(cls, arguments, instead):
    message = rf"^{cls.__name__} has no argument {re.escape(instead)}"
    with pytest.raises(TypeError, match=message):
        cls(**arguments)
    with pytest.raises(TypeError, match=message):
        cls.from_config(arguments)
    with pytest.raises(TypeError, match=message):
        cls(0.1, 0.9, **arguments)


def test_every_wrong_argument_is_named():
    with pytest.raises(TypeError) as raised:
        svag_tf.MSVAG.from_config(keras.optimizers.Adam().get_config())
    for name in ("beta_1", "beta_2", "epsilon", "amsgrad"):
        assert f"MSVAG has no argument `{name}`. " in str(raised.value)
    assert "learning_rate" not in str(raised.value)


@keras.saving.register_keras_serializable(package="tests")
class Trusting(svag_tf.MSVAG):
    """A subclass with an argument of its own."""

    def __init__(self, trust=1.0, **kwargs):
        super().__init__(**kwargs)
        self.trust = trust

    def get_config(self):
        return {**super().get_config(), "trust": self.trust}


def test_arguments_of_a_subclass():
    optimizer = Trusting(trust=2.0, learning_rate=0.5)
    again = Trusting.from_config(optimizer.get_config())
    assert (again.trust, float(again.learning_rate)) == (2.0, 0.5)
    with pytest.raises(TypeError, match=r"Trusting has no argument `lr`. Write learn"):
        Trusting(lr=0.5)
    with pytest.raises(TypeError, match=r"Did you mean trust=2.0\?"):
        Trusting(trsut=2.0)
    with pytest.raises(TypeError, match=r"Its arguments are trust, learning_rate,"):
        Trusting(foo=1)

    class OldNames(svag_tf.MSVAG):
        def __init__(self, lr, **kwargs):
            super().__init__(kwargs.pop("scale", 1.0) * lr, **kwargs)

    assert float(OldNames(lr=0.5).learning_rate) == 0.5
    assert float(OldNames(0.5, scale=0.5).learning_rate) == 0.25
    assert list(inspect.signature(OldNames).parameters) == ["lr", "kwargs"]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'lr'"):
        OldNames()


def test_pickle_and_copy():
    for copied in (
        copy.deepcopy(Trusting(trust=2.0)),
        pickle.loads(pickle.dumps(svag_tf.MSVAG(0.3))),
    ):
        assert type(copied)(**copied.get_config()).get_config() == copied.get_config()


def test_two_betas():
    with pytest.raises(TypeError, match="one beta serves both"):
        svag_tf.MSVAG(0.1, (0.9, 0.999))


def test_arguments_that_only_some_methods_have():
    for name, (_, value, wrong, valid) in OWN.items():
        owners = [cls for cls in CLASSES if name in cls.own_arguments()]
        assert owners
        for cls in CLASSES:
            if cls in owners:
                config = cls(**{name: value}).get_config()
                assert config[name] == value
                assert cls.from_config(config).get_config() == config
                message = f"`{name}` must be {valid}. Received: {name}={wrong!r}"
                with pytest.raises(ValueError, match=re.escape(message)):
                    cls(**{name: wrong})
                continue
            with pytest.raises(TypeError, match=f"`{name}`. .* ha(s|ve) one") as raised:
                cls(**{name: value})
            assert all(owner.__name__ in str(raised.value) for owner in owners)


def variables():
    return [keras.Variable([1.0]), keras.Variable([2.0])]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "params",
    [
        variables,
        lambda: tuple(variables()),
        lambda: iter(variables()),
        lambda: (v for v in variables()),
        lambda: [{"params": variables(), "lr": 0.1}],
        lambda: {"params": variables()},
        lambda: variables()[0],
        lambda: tf.Variable([1.0, 2.0]),
        lambda: keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]),
    ],
)
def test_variables_in_the_place_of_the_learning_rate(cls, params):
    """Arguments as for PyTorch's optimizers."""
    message = "`learning_rate`, the first one, must be.*model.compile.optimizer"
    with pytest.raises(TypeError, match=message):
        cls(params())
    with pytest.raises(TypeError, match=r"Write learning_rate=0\.1.*model.compile"):
        cls(params(), lr=0.1)


@pytest.mark.parametrize(
    "rate", [keras.optimizers.schedules.CosineDecay, lambda step: 0.1]
)
def test_callables_that_give_no_learning_rate(rate):
    """A class instead of an instance, and a function of the step."""
    with pytest.raises(TypeError, match="a callable without arguments is accepted"):
        svag_tf.MSVAG(rate)


@pytest.mark.parametrize("name", ["lr", "learning_rate", "epsilon", "initial_scal"])
def test_arguments_of_the_optimizer_in_a_loss_scale_optimizer(name):
    message = rf"LossScaleOptimizer has no argument `{name}`.*MSVAG\({name}=...\)"
    with pytest.raises(TypeError, match=message):
        distribution.LossScaleOptimizer(svag_tf.MSVAG(), **{name: 0.1})


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
    whole = METHODS[variant].form(1.0, 1.0)
    np.testing.assert_allclose(taken, np.multiply(whole, [1, 0.5, 0.5, 2, 2]), 1e-6)


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_callable(variant):
    rate = tf.Variable(1.0)
    optimizer = table.make(variant, 0.5, lambda: rate)
    taken = steps_taken(optimizer, 3, lambda t: rate.assign(2.0**t))
    whole = METHODS[variant].form(1.0, 1.0)
    np.testing.assert_allclose(taken, np.multiply(whole, [1, 2, 4]), 1e-6)


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_learning_rate_can_be_set(variant):
    optimizer = table.make(variant, 0.5, 1.0)

    def set_rate(t):
        if t:
            optimizer.learning_rate = [0.5, np.float32(0.25), 0][t - 1]

    taken = steps_taken(optimizer, 4, set_rate)
    whole = METHODS[variant].form(1.0, 1.0)
    np.testing.assert_allclose(taken, np.multiply(whole, [1, 0.5, 0.25, 0]), 1e-6)


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


@pytest.mark.parametrize("cls", svag_tf.optimizers.__all__)
def test_keras_knows_their_names(cls):
    for identifier in (
        f"svag_tf>{cls}",
        {"class_name": f"svag_tf>{cls}", "config": {}},
    ):
        assert type(keras.optimizers.get(identifier)) is getattr(svag_tf, cls)
