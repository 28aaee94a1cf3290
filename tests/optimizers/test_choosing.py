"""The rules of docs/choosing.md, which other optimizers' settings become ours."""

import functools
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import table
from oracle import METHODS, Oracle
from test_identities import STEPS, noisy, updates

tf = pytest.importorskip("tensorflow")

PAGE = Path(__file__).parents[2] / "docs" / "choosing.md"
RATE, BETA = 0.01, 0.9
CORRECTION = 1 - BETA ** np.arange(1, STEPS + 1)[:, None]


def torch_updates(gradients, **arguments):
    """What `torch.optim.SGD` subtracts from theta, at 0 before each step."""
    import torch

    theta = torch.nn.Parameter(torch.zeros(gradients.shape[1:]))
    optimizer = torch.optim.SGD([theta], RATE, momentum=BETA, **arguments)
    out = []
    for g in gradients:
        theta.data.zero_()
        theta.grad = torch.from_numpy(g.copy())
        optimizer.step()
        out.append(-theta.detach().numpy().copy())
    return np.array(out)


def thetas(optimizer, steps):
    """theta from 1 on, where the gradient of the loss is 0: only weight decay."""
    theta = keras.Variable([1.0], dtype="float32")
    optimizer.build([theta])

    @tf.function(autograph=False)
    def step():
        optimizer.apply([tf.zeros(1)], [theta])

    out = []
    for _ in range(steps):
        step()
        out.append(float(theta[0]))
    return np.array(out)


# From SGD. Without momentum and with Keras' momentum: test_identities.py.


@pytest.mark.needs("torch")
def test_msgd_is_pytorchs_sgd_with_momentum_after_its_start():
    ours = updates(table.make("msgd", BETA, RATE / (1 - BETA)), noisy())
    np.testing.assert_allclose(ours * CORRECTION, torch_updates(noisy()), 1e-5, 1e-7)


@pytest.mark.parametrize("method", ["msgd", "svag", "msvag"])
def test_without_noise_the_rate_is_that_of_plain_sgd(method):
    """Whatever beta is: averages of a constant are that constant."""
    constant = np.tile(noisy(steps=1), (20, 1))
    ours = updates(table.make(method, BETA, RATE), constant)
    np.testing.assert_allclose(ours, RATE * constant, 2e-6)


def test_the_same_number_is_a_tenth_of_the_step():
    """The mistake to avoid: SGD(RATE, momentum=0.9) is not MSGD(RATE)."""
    ours = updates(table.make("msgd", BETA, RATE), noisy())[100:]
    sgd = updates(keras.optimizers.SGD(RATE, momentum=BETA), noisy())[100:]
    np.testing.assert_allclose(sgd, 10 * ours, 1e-4, 1e-7)


@pytest.mark.parametrize("method, plain", [("msvag", "msgd"), ("svag", "msgd_0")])
def test_variance_adaptation_only_shrinks_steps(method, plain):
    beta = 0.0 if plain == "msgd_0" else BETA
    gradients = noisy(steps=50)
    ours = np.abs(updates(table.make(method, BETA, RATE), gradients))
    bound = np.abs(updates(table.make("msgd", beta, RATE), gradients))
    assert (ours <= bound * (1 + 1e-6)).all()
    assert np.mean(ours) < 0.9 * np.mean(bound)


# From Adam. With beta_1 = beta_2: test_identities.py.


@pytest.mark.parametrize("method", ["ssd", "mssd", "svas_gaussian", "msvas_gaussian"])
def test_a_sign_method_moves_by_at_most_the_rate(method):
    ours = np.abs(updates(table.make(method, BETA, RATE), noisy(steps=50)))
    if method.endswith("ssd"):
        np.testing.assert_allclose(ours, RATE, 1e-6)
    else:
        assert (ours <= RATE * (1 + 1e-6)).all()


def test_adam_may_move_by_more_than_its_rate():
    """By up to (1 - beta_1) / sqrt(1 - beta_2) times it, at a gradient after none."""
    theta = keras.Variable([0.0])
    adam = keras.optimizers.Adam(RATE)
    adam.build([theta])
    adam.iterations.assign(100_000)  # After a long time of zero gradients.
    adam.apply([keras.ops.ones(1)], [theta])
    assert -float(theta[0]) == pytest.approx(RATE * 0.1 / np.sqrt(0.001), rel=1e-4)


# The page's table of step sizes.


@functools.cache
def mean_steps(eta, size=1000, steps=250, warm_up=100):
    """Root mean square steps of rate 1 at a noise-to-signal ratio, by method."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(steps, size))
    gradients = noise if np.isinf(eta) else 1 + eta * noise
    deviation = 1.0 if np.isinf(eta) else np.sqrt(1 + eta**2)
    found = {}
    for method in METHODS:
        oracle = Oracle(method, 1.0, BETA, (size,))
        found[method] = [oracle.update(g) for g in gradients][warm_up:]
    m, adam = 0.0, []
    for g in gradients:
        m = BETA * m + (1 - BETA) * g
        adam.append(m / deviation)  # v, with beta_2 near 1, is the mean of g^2.
    found["adam"] = adam[warm_up:]
    found = {name: np.sqrt(np.mean(np.square(u))) for name, u in found.items()}
    found["msvag"] /= found.pop("msgd")
    return found


def rows():
    """The page's table: eta -> the printed numbers."""
    if not PAGE.exists():
        pytest.skip("no docs/choosing.md: this is not a clone")
    cells = re.findall(r"^\| (\d+|∞) \|(.*)\|$", PAGE.read_text("utf-8"), re.M)
    return {
        float(eta.replace("∞", "inf")): [float(n) for n in numbers.split("|")]
        for eta, numbers in cells
    }


def test_the_table_of_step_sizes():
    found = rows()
    assert list(found) == [0.0, 1.0, 3.0, 10.0, np.inf]
    names = ("msvag", "adam", "msvas_gaussian", "mssd", "svas_gaussian", "ssd")
    for eta, printed in found.items():
        measured = mean_steps(eta)
        # Printed with two digits; the seed moves the third.
        np.testing.assert_allclose(printed, [measured[n] for n in names], 0.01, 0.006)
        # One beta for both averages hardly changes the size of Adam's step.
        assert measured["msvas_adam"] == pytest.approx(measured["adam"], rel=0.05)


def test_on_pure_noise_adams_step_is_sqrt_rho():
    """rho = (1 - beta)/(1 + beta) in the end: 0.23 of the rate."""
    expected = np.sqrt((1 - BETA) / (1 + BETA))
    assert mean_steps(np.inf)["adam"] == pytest.approx(expected, rel=0.02)
    assert expected == pytest.approx(0.23, abs=0.005)


# Weight decay.


def test_weight_decay_is_that_of_adamw():
    adamw = thetas(keras.optimizers.AdamW(RATE, weight_decay=0.1), 50)
    ours = thetas(table.make("msvas_gaussian", BETA, RATE, weight_decay=0.1), 50)
    np.testing.assert_allclose(ours, adamw, 1e-6)


@pytest.mark.needs("torch")
def test_weight_decay_is_that_of_pytorchs_adamw():
    import torch

    theta = torch.nn.Parameter(torch.ones(1))
    adamw = torch.optim.AdamW([theta], RATE, weight_decay=0.1)
    for _ in range(50):
        theta.grad = torch.zeros(1)
        adamw.step()
    ours = thetas(table.make("msvag", BETA, RATE, weight_decay=0.1), 50)
    assert theta.item() == pytest.approx(ours[-1], rel=1e-6)


def test_weight_decay_at_another_rate():
    """rate * weight_decay is what decays: a rate 100 times larger wants 1/100."""
    adamw = thetas(keras.optimizers.AdamW(RATE, weight_decay=0.1), 50)
    ours = thetas(table.make("msvag", BETA, 100 * RATE, weight_decay=0.001), 50)
    np.testing.assert_allclose(ours, adamw, 1e-6)


def test_weight_decay_of_keras_sgd_with_momentum():
    """Keras decouples it from the velocity: at our larger rate, 1 - beta times it."""
    sgd = keras.optimizers.SGD(RATE, momentum=BETA, weight_decay=0.1)
    ours = table.make("msgd", BETA, RATE / (1 - BETA), weight_decay=0.1 * (1 - BETA))
    np.testing.assert_allclose(thetas(ours, 50), thetas(sgd, 50), 1e-6)


@pytest.mark.needs("torch")
def test_weight_decay_of_pytorchs_sgd_with_momentum():
    """PyTorch adds it to the gradient, so that it is summed as well: the same number.

    The same to first order in rate * weight_decay / (1 - beta), after the start.
    """
    import torch

    theta = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    sgd = torch.optim.SGD([theta], RATE, momentum=BETA, weight_decay=0.01)
    values = []
    for _ in range(400):
        theta.grad = torch.zeros_like(theta)
        sgd.step()
        values.append(theta.item())
    ours = thetas(table.make("msgd", BETA, RATE / (1 - BETA), weight_decay=0.01), 400)
    decay = [np.log(x[100] / x[399]) for x in (np.array(values), ours)]
    assert decay[0] == pytest.approx(decay[1], rel=0.01)


# Schedules.


def scheduled(optimizer, gradients):
    """Updates with a rate that is divided by 10 after 100 steps."""
    rate = float(optimizer.learning_rate)
    optimizer.learning_rate = keras.optimizers.schedules.PiecewiseConstantDecay(
        [99], [rate, rate / 10]
    )
    return updates(optimizer, gradients)


def test_a_schedule_is_multiplied_by_the_same_factor():
    """With ours, as with PyTorch, a drop takes effect at once; Keras' SGD keeps the
    old rate in its velocity, and follows with momentum's delay."""
    constant = np.ones((STEPS, 1), np.float32)
    ours = scheduled(table.make("msgd", BETA, RATE / (1 - BETA)), constant)
    sgd = scheduled(keras.optimizers.SGD(RATE, momentum=BETA), constant)
    ends = [99, -1]  # The last step before the drop, and the last of all.
    np.testing.assert_allclose(ours[ends], sgd[ends], 5e-4)
    assert ours[100] == pytest.approx(0.1 * ours[99], rel=1e-5)
    assert sgd[100] == pytest.approx((0.9 + 0.1 * 0.1) * sgd[99], rel=1e-4)


def test_the_first_step_is_a_whole_one():
    """No start-up: SGD's first step with momentum is 1 - beta times as large."""
    ours = updates(table.make("msvag", BETA, RATE / (1 - BETA)), noisy(steps=1))
    sgd = updates(keras.optimizers.SGD(RATE, momentum=BETA), noisy(steps=1))
    np.testing.assert_allclose(sgd, (1 - BETA) * ours, 1e-5)


# A training, as the page says.


def losses(optimizer):
    """Loss of a noisy least-squares problem in each of five epochs."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(512, 20)).astype("float32")
    y = x @ rng.normal(size=(20, 1)).astype("float32")
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    return model.fit(x, y, batch_size=64, epochs=5, verbose=0).history["loss"]


def test_a_training_at_the_equal_rate():
    ends = [
        losses(optimizer)[-1]
        for optimizer in (
            keras.optimizers.SGD(RATE, momentum=BETA),
            table.make("msgd", BETA, RATE / (1 - BETA)),
            table.make("msgd", BETA, RATE),
        )
    ]
    np.testing.assert_allclose(ends, [0.24, 0.20, 5.7], 0.03)  # As on the page.
