"""Variables of all shapes, without a gradient, and of several models at once."""

import keras
import numpy as np
import pytest
import table
from oracle import Oracle
from tiers import slow_but

tf = pytest.importorskip("tensorflow")

MODES = table.MODES
SHAPES = ((), (0,), (3, 0), (1,), (2, 1, 3, 2, 2))


def in_mode(function, mode):
    if mode == "eager":
        return function
    return tf.function(function, jit_compile=mode == "xla", autograph=False)


def noise(t, shape, seed=0):
    return (0.4 + np.random.default_rng([seed, t]).normal(size=shape)).astype("float32")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", slow_but(["msvag", "ssd"], table.VARIANTS))
def test_shapes(variant, mode):
    """Scalars, empty variables, five dimensions, all in one optimizer."""
    variables = [keras.Variable(np.zeros(shape, np.float32)) for shape in SHAPES]
    optimizer = table.make(variant, 0.9, 0.5)
    optimizer.build(variables)
    step = in_mode(lambda gs: optimizer.apply(gs, variables), mode)
    oracles = [Oracle(variant, 0.5, 0.9, shape) for shape in SHAPES]
    thetas = [np.zeros(shape) for shape in SHAPES]
    for t in range(6):
        gs = [noise(t, shape) for shape in SHAPES]
        step([tf.constant(g) for g in gs])
        thetas = [theta - o.update(g) for theta, o, g in zip(thetas, oracles, gs)]
    for variable, theta in zip(variables, thetas):
        assert variable.shape == theta.shape
        np.testing.assert_allclose(table.to_numpy(variable), theta, 1e-5, 1e-6)


@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", table.VARIANTS)
def test_variable_without_gradient_counts_its_own_updates(variant, mode):
    """It stays as it is, slots and all, and its t is the count of its own updates."""
    variables = [keras.Variable(np.zeros(3, np.float32)) for _ in range(2)]
    optimizer = table.make(variant, 0.9, 0.5)
    optimizer.build(variables)
    both = in_mode(lambda a, b: optimizer.apply([a, b], variables), mode)
    first = in_mode(lambda a: optimizer.apply([a, None], variables), mode)
    only = in_mode(lambda a: optimizer.apply([a], variables[:1]), mode)
    oracles = [Oracle(variant, 0.5, 0.9, (3,)) for _ in variables]
    thetas = [np.zeros(3), np.zeros(3)]
    for t, step in enumerate([first, only, both, first, both, only, both, both]):
        a, b = noise(t, 3, 1), noise(t, 3, 2)
        thetas[0] = thetas[0] - oracles[0].update(a)
        if step is both:
            thetas[1] = thetas[1] - oracles[1].update(b)
            step(tf.constant(a), tf.constant(b))
        else:
            step(tf.constant(a))
        for variable, theta in zip(variables, thetas):
            np.testing.assert_allclose(table.to_numpy(variable), theta, 1e-5, 1e-6)


@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
def test_variable_without_gradient_under_accumulation():
    """What it misses is updates, not steps."""
    variables = [keras.Variable(np.zeros(3, np.float32)) for _ in range(2)]
    optimizer = table.make("msvag", 0.9, 0.5, gradient_accumulation_steps=2)
    optimizer.build(variables)
    oracle, theta = Oracle("msvag", 0.5, 0.9, (3,)), np.zeros(3)
    for t in range(4):
        optimizer.apply([tf.constant(noise(t, 3)), None], variables)
    for t in range(4, 10, 2):
        g = [noise(t + i, 3) for i in range(2)]
        for each in g:
            optimizer.apply([tf.constant(each), tf.constant(each)], variables)
        theta = theta - oracle.update(np.mean(g, axis=0, dtype=np.float64))
        np.testing.assert_allclose(table.to_numpy(variables[1]), theta, 1e-5, 1e-6)


def test_no_gradient_at_all_is_an_error():
    theta = keras.Variable(0.0)
    with pytest.raises(ValueError, match="No gradients provided"):
        table.make("msvag").apply([None], [theta])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", table.VARIANTS)
def test_two_optimizers_do_not_mix(variant, mode):
    """Two of a kind with other arguments, on variables of the same shape, in turn."""
    settings = ((0.9, 0.5), (0.5, 0.25))
    variables = [keras.Variable(np.zeros(4, np.float32)) for _ in settings]
    optimizers = [table.make(variant, beta, rate) for beta, rate in settings]
    steps = []
    for optimizer, variable in zip(optimizers, variables):
        optimizer.build([variable])
        steps.append(in_mode(lambda g, o=optimizer: o.apply([g]), mode))
    oracles = [Oracle(variant, rate, beta, (4,)) for beta, rate in settings]
    thetas = [np.zeros(4), np.zeros(4)]
    for t in range(8):
        for i in (0, 1) if t % 3 else (0,):
            g = noise(t, 4, i)
            steps[i](tf.constant(g))
            thetas[i] = thetas[i] - oracles[i].update(g)
    for variable, theta in zip(variables, thetas):
        np.testing.assert_allclose(table.to_numpy(variable), theta, 1e-5, 1e-6)


def test_two_models_train_as_each_alone():
    def trained(*variants):
        models = []
        for variant in variants:
            keras.utils.set_random_seed(1)
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
            model.compile(table.make(variant), "mse", jit_compile=False)
            models.append(model)
        for t in range(4):
            for model in models:
                model.fit(noise(t, (8, 4)), noise(t, (8, 2), 1), verbose=0)
        return [model.get_weights()[0] for model in models]

    together = trained("msvag", "msvas_gaussian")
    for one, variant in zip(together, ("msvag", "msvas_gaussian")):
        np.testing.assert_array_equal(one, trained(variant)[0])
    assert not np.array_equal(*together)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("variant", table.VARIANTS)
def test_no_retracing(variant, jit_compile):
    theta = keras.Variable(np.zeros(3, np.float32))
    optimizer = table.make(variant)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def step(g):
        optimizer.apply([g], [theta])

    optimizer.build([theta])
    for t in range(4):
        step(tf.constant(noise(t, 3)))
    assert step.experimental_get_tracing_count() == 1
    assert int(optimizer.iterations) == 4


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_optimizer_builds_itself_on_the_first_apply(variant):
    theta = keras.Variable([1.0, 2.0])
    optimizer = table.make(variant, learning_rate=0.5)
    optimizer.apply([tf.constant([1.0, 1.0])], [theta])
    np.testing.assert_allclose(theta.numpy(), [0.5, 1.5], 1e-6)
    optimizer.apply([tf.constant([1.0, 1.0])])
    np.testing.assert_allclose(theta.numpy(), [0.0, 1.0], atol=1e-6)


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_apply_gradients_and_tf_variables(variant):
    """The older spelling, and bare `tf.Variable`s."""
    theta = tf.Variable([1.0, 2.0])
    optimizer = table.make(variant, learning_rate=0.5)
    optimizer.apply_gradients([(tf.constant([1.0, -1.0]), theta)])
    np.testing.assert_allclose(theta.numpy(), [0.5, 2.5], 1e-6)
