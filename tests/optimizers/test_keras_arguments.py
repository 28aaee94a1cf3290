"""The arguments of Keras' base class, each against what it means written out in NumPy.

The oracle makes the update itself; `Written` adds clipping, weight decay, averages of
the weights and accumulation around it.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import pytest
import table
from oracle import Oracle

tf = pytest.importorskip("tensorflow")

STEPS = 12
SHAPES = ((3,), (2, 4))
BETA, RATE = 0.9, 0.1


def gradients():
    """For each step, one gradient for each variable: some small, some large."""
    rng = np.random.default_rng(3)
    return [
        [
            ((0.4 + rng.normal(size=s)) * 3.0 ** rng.normal()).astype(np.float32)
            for s in SHAPES
        ]
        for _ in range(STEPS)
    ]


def starts():
    rng = np.random.default_rng(4)
    return [rng.normal(size=s).astype(np.float32) for s in SHAPES]


def constant_rate(step):
    return RATE


def norm(arrays):
    return np.sqrt(sum(np.sum(np.square(a, dtype=np.float64)) for a in arrays))


@dataclasses.dataclass
class Written:
    """What a step does to all variables, in float64."""

    variant: str
    weight_decay: float = 0.0
    clipnorm: float | None = None
    clipvalue: float | None = None
    global_clipnorm: float | None = None
    use_ema: bool = False
    ema_momentum: float = 0.99
    ema_overwrite_frequency: int | None = None
    loss_scale_factor: float = 1.0
    gradient_accumulation_steps: int = 1
    rate: Callable = constant_rate
    decayed: tuple = (True, True)

    def __post_init__(self):
        self.thetas = [np.asarray(theta, np.float64) for theta in starts()]
        self.oracles = [Oracle(self.variant, 1.0, BETA, s) for s in SHAPES]
        self.averages = None
        self.accumulated = []
        self.step_count = 0

    def clipped(self, gs):
        if self.clipvalue:
            return [np.clip(g, -self.clipvalue, self.clipvalue) for g in gs]
        if self.clipnorm:
            return [g * min(1, self.clipnorm / norm([g])) for g in gs]
        if self.global_clipnorm:
            return [g * min(1, self.global_clipnorm / norm(gs)) for g in gs]
        return gs

    def step(self, gs):
        self.step_count += 1
        gs = [np.asarray(g, np.float64) / self.loss_scale_factor for g in gs]
        self.accumulated.append(gs)
        if len(self.accumulated) == self.gradient_accumulation_steps:
            self.update([np.mean(g, axis=0) for g in zip(*self.accumulated)])
            self.accumulated = []
        if not self.use_ema:
            return
        if self.averages is None:
            self.averages = self.thetas
        k = self.ema_momentum
        self.averages = [
            k * average + (1 - k) * theta
            for average, theta in zip(self.averages, self.thetas)
        ]
        every = self.ema_overwrite_frequency
        if every and self.step_count % every == 0:
            self.thetas = self.averages

    def update(self, gs):
        rate = self.rate(self.step_count - 1)
        self.thetas = [
            theta - rate * self.weight_decay * theta * decayed - rate * oracle.update(g)
            for theta, oracle, g, decayed in zip(
                self.thetas, self.oracles, self.clipped(gs), self.decayed
            )
        ]


def assert_equal_to_written(
    variant, mode, written=None, rate=RATE, grads=None, **arguments
):
    """Compares every step of the optimizer with these arguments with `Written`."""
    written = written or Written(variant, **arguments)
    optimizer = table.make(variant, BETA, rate, **arguments)
    variables = [
        keras.Variable(start, name=name)
        for start, name in zip(starts(), ("bias", "kernel"))
    ]
    optimizer.build(variables)

    def apply(gs):
        optimizer.apply(gs, variables)

    if mode != "eager":
        apply = tf.function(apply, jit_compile=mode == "xla", autograph=False)
    for gs in grads or gradients():
        apply([tf.constant(g) for g in gs])
        written.step(gs)
        for variable, theta in zip(variables, written.thetas):
            np.testing.assert_allclose(table.to_numpy(variable), theta, 1e-5, 2e-6)
    return optimizer, variables, written


ARGUMENTS = {
    "none": {},
    "weight_decay": {"weight_decay": 0.3},
    "clipnorm": {"clipnorm": 1.5},
    "clipvalue": {"clipvalue": 0.7},
    "global_clipnorm": {"global_clipnorm": 1.5},
    "use_ema": {"use_ema": True, "ema_momentum": 0.8},
    "ema_overwrite_frequency": {
        "use_ema": True,
        "ema_momentum": 0.8,
        "ema_overwrite_frequency": 3,
    },
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 3},
    "all that go together": {
        "weight_decay": 0.3,
        "global_clipnorm": 1.5,
        "gradient_accumulation_steps": 2,
        "loss_scale_factor": 4.0,
    },
}


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("variant", table.VARIANTS)
def test_argument(variant, name):
    assert_equal_to_written(variant, "graph", **ARGUMENTS[name])


@pytest.mark.parametrize("mode", ["eager", "xla"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_argument_in_other_modes(name, mode):
    assert_equal_to_written("msvag", mode, **ARGUMENTS[name])


@pytest.mark.parametrize("name", [n for n in ARGUMENTS if n != "none"])
def test_argument_matters(name):
    """Each argument changes the result for these gradients, so the tests can fail."""
    ends = []
    for arguments in ({}, ARGUMENTS[name]):
        written = Written("msvag", **arguments)
        for gs in gradients():
            written.step(gs)
        ends.append(written.averages if arguments.get("use_ema") else written.thetas)
    assert all(np.abs(a - b).max() > 1e-2 for a, b in zip(*ends))


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_loss_scale_factor(variant):
    """`scale_loss` multiplies the loss, the update divides the gradient: no effect."""
    scaled = [[g * np.float32(1024) for g in gs] for gs in gradients()]
    optimizer, variables, _ = assert_equal_to_written(
        variant, "graph", grads=scaled, loss_scale_factor=1024.0
    )
    assert float(optimizer.scale_loss(tf.constant(0.5))) == 512.0
    _, unscaled, _ = assert_equal_to_written(variant, "graph")
    for a, b in zip(variables, unscaled):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_ema_is_put_in_place_at_the_end(variant):
    optimizer, variables, written = assert_equal_to_written(
        variant, "graph", use_ema=True, ema_momentum=0.8
    )
    optimizer.finalize_variable_values(variables)
    for variable, average in zip(variables, written.averages):
        np.testing.assert_allclose(table.to_numpy(variable), average, 1e-5, 2e-6)


def test_ema_that_has_not_begun_is_not_put_in_place():
    optimizer = table.make("msvag", BETA, RATE, use_ema=True)
    variables = [keras.Variable([1.0, 2.0]), keras.Variable([3.0])]
    optimizer.build(variables)
    optimizer.finalize_variable_values(variables)
    assert [v.numpy().tolist() for v in variables] == [[1.0, 2.0], [3.0]]
    optimizer.has_average.assign([1, 0])  # As after an unfrozen layer's restoring.
    optimizer.finalize_variable_values(variables)
    assert [v.numpy().tolist() for v in variables] == [[0.0, 0.0], [3.0]]


@pytest.mark.parametrize("exclude", ["name", "variable"])
def test_weight_decay_excluded(exclude):
    variant = "msvag"
    optimizer = table.make(variant, BETA, RATE, weight_decay=0.3)
    variables = [
        keras.Variable(start, name=name)
        for start, name in zip(starts(), ("bias", "kernel"))
    ]
    if exclude == "name":
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    else:
        optimizer.exclude_from_weight_decay(var_list=variables[:1])
    optimizer.build(variables)
    written = Written(variant, weight_decay=0.3, decayed=(False, True))
    for gs in gradients():
        optimizer.apply([tf.constant(g) for g in gs], variables)
        written.step(gs)
    for variable, theta in zip(variables, written.thetas):
        np.testing.assert_allclose(table.to_numpy(variable), theta, 1e-5, 2e-6)


@pytest.mark.parametrize("variant", ["msvag", "ssd"])
def test_schedule_and_accumulation(variant):
    """Schedules count steps, as in Keras; beta powers count updates."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [2, 6], [0.1, 0.3, 0.05]
    )
    written = Written(
        variant,
        gradient_accumulation_steps=2,
        rate=lambda step: 0.1 if step <= 2 else 0.3 if step <= 6 else 0.05,
    )
    assert_equal_to_written(
        variant, "graph", written, rate=schedule, gradient_accumulation_steps=2
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("arguments", [{"clipnorm": 300.0}, {"global_clipnorm": 300.0}])
def test_norms_above_256_in_half_precision(dtype, arguments):
    """Their sum of squares overflows in float16."""
    theta = keras.Variable(np.zeros(4), dtype=dtype)
    optimizer = table.make("msgd", 0.0, 1.0, **arguments)
    optimizer.apply([tf.constant([600.0, 0.0, -800.0, 0.0], dtype)], [theta])
    np.testing.assert_allclose(table.to_numpy(theta), [-180, 0, 240, 0], 4e-3)


@pytest.mark.parametrize("dtype", table.DTYPES)
def test_weight_decay_in_every_dtype(dtype):
    """theta - rate decay theta - step, rounded once to the variable's dtype."""
    start = np.array([1.5, -2.0, 0.75], table.numpy_dtype(dtype))
    theta = keras.Variable(start, dtype=dtype)
    optimizer = table.make("ssd", learning_rate=0.125, weight_decay=0.25)
    optimizer.apply([tf.ones(3, dtype)], [theta])
    expected = start.astype(np.float64) * (1 - 0.03125) - 0.125
    np.testing.assert_array_equal(
        table.to_numpy(theta),
        expected.astype(table.numpy_dtype(dtype)).astype(np.float64),
    )
