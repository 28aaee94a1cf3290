"""Variables of all shapes, without a gradient, and of several models at once."""

import keras
import numpy as np
import pytest
import table
from oracle import METHODS, Oracle
from tiers import sampled

import svag_tf

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
@pytest.mark.parametrize("variant", sampled(["msvag", "ssd"], table.VARIANTS))
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
    """It and its slots do not change, and its t counts its own updates."""
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
    """It misses updates, not steps."""
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

    both = trained("msvag", "msvas_gaussian")
    for one, variant in zip(both, ("msvag", "msvas_gaussian")):
        np.testing.assert_array_equal(one, trained(variant)[0])
    assert not np.array_equal(*both)


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
    whole = METHODS[variant].form(1.0, 1.0)
    expected = np.array([1.0, 2.0]) - 0.5 * whole
    np.testing.assert_allclose(theta.numpy(), expected, 1e-6)
    optimizer.apply([tf.constant([1.0, 1.0])])
    np.testing.assert_allclose(theta.numpy(), expected - 0.5 * whole, atol=1e-6)


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_apply_gradients_and_tf_variables(variant):
    """The older spelling, and bare `tf.Variable`s."""
    theta = tf.Variable([1.0, 2.0])
    optimizer = table.make(variant, learning_rate=0.5)
    optimizer.apply_gradients([(tf.constant([1.0, -1.0]), theta)])
    step = METHODS[variant].form(1.0, np.array([1.0, -1.0]))
    np.testing.assert_allclose(theta.numpy(), [1.0, 2.0] - 0.5 * step, 1e-6)


@pytest.mark.parametrize("variant", table.VARIANTS)
@pytest.mark.parametrize("before", [0, 200])
@pytest.mark.parametrize("n", [0, 1000, 2**31 - 3, 2**62])
def test_iterations_place_a_schedule_and_nothing_else(variant, before, n):
    """Steps of a constant gradient do not change."""
    theta = keras.Variable(np.zeros(1, np.float32))
    optimizer = table.make(variant, beta=0.9, learning_rate=1.0)
    if n == 1000:
        optimizer.iterations.assign(n)
    optimizer.build([theta])
    one = tf.ones(1)
    for _ in range(before):
        optimizer.apply([one], [theta])
    optimizer.iterations.assign(n)
    whole = METHODS[variant].form(1.0, 1.0)
    for _ in range(3):
        last = theta.numpy()
        optimizer.apply([one], [theta])
        np.testing.assert_allclose(last - theta.numpy(), whole, 1e-4)


def test_iterations_place_a_schedule():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([10], [1.0, 0.25])
    theta = keras.Variable(np.zeros(1, np.float32))
    optimizer = table.make("msvag", learning_rate=schedule)
    optimizer.build([theta])
    optimizer.iterations.assign(100)
    optimizer.apply([tf.ones(1)], [theta])
    np.testing.assert_allclose(theta.numpy(), -0.25, 1e-6)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_a_count_stops_at_the_end_of_its_range(dtype, monkeypatch):
    theta = keras.Variable(np.zeros(1, np.float32))
    optimizer = table.make("msvag", beta=0.9, learning_rate=1.0)
    optimizer.build([theta])
    optimizer.update_counts = keras.Variable([0], dtype=dtype)
    largest = np.iinfo(dtype).max
    optimizer.update_counts.assign([largest - 1])
    for slot in (optimizer.m_tilde[0], optimizer.v_tilde[0]):
        slot.assign([1.0])  # What they are after so many gradients of 1.
    for t in range(3):
        optimizer.apply([tf.ones(1)], [theta])
        np.testing.assert_allclose(theta.numpy(), -(t + 1), 1e-5)
        assert optimizer.update_counts.numpy() == [largest]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "use_ema": True,
            "ema_overwrite_frequency": 2,
            "gradient_accumulation_steps": 3,
        },
    ],
)
def test_the_step_count_stops_at_the_end_of_its_range(options):
    """With int32, which TensorFlow does not use, as with int64."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([5], [9.0, 1.0])

    def thetas(dtype):
        theta = keras.Variable(np.zeros(1, np.float32))
        optimizer = svag_tf.MSGD(schedule, jit_compile=False, **options)
        optimizer.build([theta])
        optimizer._iterations = keras.Variable(2**31 - 6, dtype=dtype)
        for t in range(16):
            optimizer.apply([tf.fill([1], 1.0 + t)], [theta])
            yield theta.numpy()
        assert optimizer.iterations.numpy() > 0

    np.testing.assert_array_equal(list(thetas("int32")), list(thetas("int64")))


@pytest.mark.parametrize(
    "variable, message",
    [
        (
            lambda: keras.Variable(np.ones(2, "complex64")),
            "complex64.* real and its im",
        ),
        (lambda: tf.Variable(np.ones(2, "complex128")), "complex128"),
        (lambda: keras.Variable(np.ones(2, "int32")), "int32"),
        (lambda: keras.Variable(np.ones(2, "bool")), "bool"),
        (lambda: tf.Variable(["a"]), "string"),
        (lambda: tf.Variable(np.ones((2, 3), "float32"), shape=(None, 3)), "shape"),
        (lambda: tf.Variable(1.0, shape=tf.TensorShape(None)), "shape"),
    ],
)
@pytest.mark.parametrize("variant", ["msvag", "ssd"])
def test_variables_that_cannot_be_optimized(variant, variable, message):
    """Refused when the optimizer is built; it can then be built on others."""
    optimizer = table.make(variant)
    with pytest.raises(ValueError, match=f"Received: the variable .*{message}"):
        optimizer.build([keras.Variable([1.0]), variable()])
    theta = keras.Variable([1.0])
    optimizer.apply([tf.ones(1)], [theta])
    assert theta.numpy() < 1.0


OPTIONS = [
    {},
    {"use_ema": True, "ema_overwrite_frequency": 2},
    {"gradient_accumulation_steps": 2},
    {"clipnorm": 1.0},
    {"global_clipnorm": 1.0},
    {"clipvalue": 1.0},
    {"weight_decay": 0.1},
    {"loss_scale_factor": 8.0},
    {"state_dtype": "bfloat16"},
    {"sparse_updates": "lazy"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_empty_variables_with_every_option(mode, options):
    shapes = ((0, 3), (3, 0), (0,), (2,))
    variables = [keras.Variable(np.zeros(shape, np.float32)) for shape in shapes]
    optimizer = table.make("msvag", **options)
    optimizer.build(variables)
    step = in_mode(lambda gs: optimizer.apply(gs, variables), mode)
    for t in range(4):
        step([tf.constant(noise(t, shape)) for shape in shapes])
    optimizer.finalize_variable_values(variables)
    assert [tuple(v.shape) for v in variables] == list(shapes)
    assert np.isfinite(variables[-1].numpy()).all() and variables[-1].numpy().all()


class Half(table.make("msvag").__class__):
    """A subclass with half the rate for vectors, as for layer-wise rates."""

    def update_step(self, gradient, variable, learning_rate):
        factor = 0.5 if len(variable.shape) == 1 else 1.0
        super().update_step(gradient, variable, learning_rate * factor)


@pytest.mark.parametrize("accumulation", [None, 2])
@pytest.mark.parametrize("mode", MODES)
def test_learning_rate_of_a_subclass(mode, accumulation):
    def run(cls, rate):
        variables = [keras.Variable(np.zeros(s, np.float32)) for s in ((2, 2), (3,))]
        arguments = {"gradient_accumulation_steps": accumulation, "weight_decay": 0.1}
        optimizer = cls(learning_rate=rate, **arguments)
        optimizer.build(variables)
        step = in_mode(lambda gs: optimizer.apply(gs, variables), mode)
        for t in range(6):
            step([tf.constant(noise(t, v.shape)) for v in variables])
        return [v.numpy() for v in variables]

    msvag = Half.__mro__[1]
    matrix, vector = run(Half, 0.5)
    np.testing.assert_allclose(matrix, run(msvag, 0.5)[0], 1e-6)
    np.testing.assert_allclose(vector, run(msvag, 0.25)[1], 1e-6)
    for rate in (0.5, keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)):
        assert not np.array_equal(run(Half, rate)[1], run(msvag, rate)[1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("accumulation", [None, 2])
def test_a_subclass_is_given_variables_with_their_paths(accumulation, mode):
    """By which it knows their layers; Keras' own optimizers get TensorFlow's."""
    paths = []

    class Paths(svag_tf.MSVAG):
        def update_step(self, gradient, variable, learning_rate):
            paths.append(variable.path)
            super().update_step(gradient, variable, learning_rate)

    layer = keras.layers.Dense(2, name="head")
    layer.build((None, 3))
    variables = layer.trainable_variables
    optimizer = Paths(gradient_accumulation_steps=accumulation)
    optimizer.build(variables)
    step = in_mode(lambda gs: optimizer.apply(gs, variables), mode)
    for _ in range(2):
        step([tf.ones(v.shape) for v in variables])
    assert set(paths) == {"head/kernel", "head/bias"}


class Often(svag_tf.MSVAG):
    """A subclass that makes as many updates as the variable has dimensions."""

    def update_step(self, gradient, variable, learning_rate):
        for _ in variable.shape:
            super().update_step(gradient, variable, learning_rate)


class IfPositive(svag_tf.MSVAG):
    """A subclass whose updates depend on the gradient, in a graph too."""

    def update_step(self, gradient, variable, learning_rate):
        def make():
            super(IfPositive, self).update_step(gradient, variable, learning_rate)
            return 0

        tf.cond(tf.reduce_sum(gradient) > 0, make, lambda: 0)


class InBetween(IfPositive):
    """A subclass with an update before and after one that depends on the gradient."""

    def update_step(self, gradient, variable, learning_rate):
        svag_tf.MSVAG.update_step(self, gradient, variable, learning_rate)
        super().update_step(gradient, variable, learning_rate)
        svag_tf.MSVAG.update_step(self, gradient, variable, learning_rate)


class Afterwards(IfPositive):
    """A subclass with an update after one that depends on the gradient."""

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate)
        svag_tf.MSVAG.update_step(self, gradient, variable, learning_rate)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "cls, updates",
    [
        (Often, lambda g: g.ndim),
        (IfPositive, lambda g: int(g.sum() > 0)),
        (InBetween, lambda g: 2 + int(g.sum() > 0)),
        (Afterwards, lambda g: 1 + int(g.sum() > 0)),
    ],
    ids=["often", "if positive", "in between", "afterwards"],
)
def test_counts_are_of_updates_that_were_made(cls, updates, mode, joined, monkeypatch):
    """Not of those that a subclass leaves out, and all of those that it adds."""
    monkeypatch.setattr(svag_tf.kernels, "MANY_SHAPES", 0 if joined else 32)
    shapes = ((), (3,), (2, 2))
    variables = [keras.Variable(np.zeros(shape, np.float32)) for shape in shapes]
    optimizer = cls(0.5)
    optimizer.build(variables)
    step = in_mode(lambda gs: optimizer.apply(gs, variables), mode)
    oracles = [Oracle("msvag", 0.5, 0.9, shape) for shape in shapes]
    thetas, counts = [np.zeros(shape) for shape in shapes], [0, 0, 0]
    for t in range(6):
        gs = [noise(t, shape) for shape in shapes]
        step([tf.constant(g) for g in gs])
        for i, g in enumerate(gs):
            for _ in range(updates(g)):
                thetas[i] = thetas[i] - oracles[i].update(g)
                counts[i] += 1
    assert optimizer.update_counts.numpy().tolist() == counts
    for variable, theta in zip(variables, thetas):
        np.testing.assert_allclose(variable.numpy(), theta, 1e-5, 1e-6)


class ByRank(keras.optimizers.Optimizer):
    """A user's wrapper: an optimizer for matrices, and another for the rest."""

    def __init__(self, matrices, others):
        super().__init__(learning_rate=0.5)
        self.parts = [matrices, others]

    def build(self, variables):
        super().build(variables)
        for part in self.parts:
            part.build([v for v in variables if self.part_of(v) is part])

    def part_of(self, variable):
        return self.parts[len(variable.shape) != 2]

    def update_step(self, gradient, variable, learning_rate):
        self.part_of(variable).update_step(gradient, variable, learning_rate)


class ByRankInApply(ByRank):
    """The same by `apply`."""

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            self.build(trainable_variables)
        for part in self.parts:
            pairs = [(g, v) for g, v in zip(grads, trainable_variables)
                     if self.part_of(v) is part]  # fmt: skip
            part.apply(*zip(*pairs))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wrapper", [ByRank, ByRankInApply])
def test_a_wrapper_that_holds_several_optimizers(wrapper, mode):
    shapes = ((2, 3), (3,))
    variables = [keras.Variable(np.zeros(shape, np.float32)) for shape in shapes]
    wrapped = wrapper(table.make("msvag", 0.9, 0.5), table.make("mssd", 0.8, 0.5))
    wrapped.build(variables)
    step = in_mode(lambda gs: wrapped.apply(gs, variables), mode)
    oracles = [Oracle("msvag", 0.5, 0.9, (2, 3)), Oracle("mssd", 0.5, 0.8, (3,))]
    thetas = [np.zeros(shape) for shape in shapes]
    for t in range(6):
        gs = [noise(t, shape) for shape in shapes]
        step([tf.constant(g) for g in gs])
        thetas = [theta - o.update(g) for theta, o, g in zip(thetas, oracles, gs)]
    for variable, theta in zip(variables, thetas):
        np.testing.assert_allclose(table.to_numpy(variable), theta, 1e-5, 1e-6)
