"""Slots: their names, number and dtype; and which dtype the update is computed in."""

import keras
import numpy as np
import pytest
import table
from keras import ops
from oracle import METHODS, Oracle
from tiers import sampled


def built(variant, dtype="float32", **kwargs):
    optimizer = table.make(variant, **kwargs)
    variables = [
        keras.Variable(np.zeros(shape), dtype=dtype, name=name)
        for shape, name in (((2, 3), "kernel"), ((3,), "bias"))
    ]
    optimizer.build(variables)
    return optimizer, variables


def dtypes(slots):
    return {keras.backend.standardize_dtype(slot.dtype) for slot in slots}


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_slots_by_name(variant):
    optimizer, variables = built(variant)
    for name in table.SLOTS:
        slots = getattr(optimizer, name)
        assert len(slots) == (name in METHODS[variant].slots) * len(variables)
        for slot, variable in zip(slots, variables):
            assert slot.shape == variable.shape
            assert variable.name in slot.name and name in slot.name
            assert any(slot is v for v in optimizer.variables)  # It is saved.
            assert not slot.trainable


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_no_slots_but_those_needed(variant):
    """Nothing else of a variable's size is kept."""
    optimizer, _ = built(variant)
    large = [v for v in optimizer.variables if v.shape == (2, 3)]
    assert len(large) == len(METHODS[variant].slots)


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_no_slots_before_build(variant):
    optimizer = table.make(variant)
    assert list(optimizer.m_tilde) == list(optimizer.v_tilde) == []


def test_slots_hold_the_averages():
    optimizer, variables = built("msvag", beta=0.75)
    for g in (1.0, 3.0):
        optimizer.apply([ops.full(v.shape, g) for v in variables], variables)
    np.testing.assert_allclose(optimizer.m_tilde[1], np.full(3, 0.9375))
    np.testing.assert_allclose(optimizer.v_tilde[1], np.full(3, 2.4375))


@pytest.mark.parametrize(
    "dtype, expected",
    [
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ],
)
@pytest.mark.parametrize("variant", table.VARIANTS)
def test_default_dtype(variant, dtype, expected):
    optimizer, _ = built(variant, dtype)
    for slots in (optimizer.m_tilde, optimizer.v_tilde):
        assert dtypes(slots) <= {expected}


@pytest.mark.parametrize(
    "variant", sampled(["msvag"], ["msgd", "mssd", "msvag", "svas_gaussian"])
)
@pytest.mark.parametrize("state_dtype", table.DTYPES)
@pytest.mark.parametrize("dtype", table.DTYPES)
def test_state_dtype(variant, dtype, state_dtype):
    """Slots have the requested dtype, and are only rounded to it in each step."""
    optimizer, variables = built(
        variant, dtype, state_dtype=state_dtype, learning_rate=0.5
    )
    assert dtypes([*optimizer.m_tilde, *optimizer.v_tilde]) == {state_dtype}
    oracle = Oracle(variant, 0.5, 0.9, (3,))
    rng = np.random.default_rng(0)
    coarsest = table.numpy_dtype(
        max((dtype, state_dtype, "float32"), key=lambda d: -table.DTYPES.index(d))
    )
    eps = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1.2e-7, "float64": 2.3e-16}
    tolerance = 8 * max(eps[d] for d in (dtype, state_dtype))
    for _ in range(4):
        g = (1 + 0.3 * rng.normal(size=3)).astype(coarsest)
        for variable in variables:
            variable.assign(ops.zeros(variable.shape))
        gradients = [
            ops.convert_to_tensor(np.tile(g, (2, 1))),
            ops.convert_to_tensor(g),
        ]
        optimizer.apply([ops.cast(x, dtype) for x in gradients], variables)
        update = oracle.update(np.asarray(g, np.float64))
        np.testing.assert_allclose(-table.to_numpy(variables[1]), update, tolerance)
        np.testing.assert_allclose(
            table.to_numpy(optimizer.m_tilde[1]), oracle.m_tilde, tolerance
        )
    config = optimizer.get_config()
    assert config["state_dtype"] == state_dtype


@pytest.mark.parametrize("value", ["bfloat16", np.float64, np.dtype("float16")])
def test_state_dtype_of_all_kinds(value):
    optimizer, _ = built("msvag", state_dtype=value)
    expected = keras.backend.standardize_dtype(value)
    assert dtypes(optimizer.m_tilde) == {expected}
    assert optimizer.get_config()["state_dtype"] == expected


def test_slots_of_half_precision_saturate():
    """g^2 = 1e6 overflows in float16; the slot holds the largest number, not inf."""
    optimizer, variables = built("msvag", state_dtype="float16", beta=0.0)
    optimizer.apply([ops.full(v.shape, 1e3) for v in variables], variables)
    np.testing.assert_array_equal(table.to_numpy(optimizer.v_tilde[1]), 65504.0)


@pytest.mark.parametrize("variant", table.VARIANTS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_beta_is_not_rounded_to_the_dtype_of_the_variable(variant, dtype):
    """In bfloat16 0.999 is 1, and 1 - beta^t is 0: nothing would move, or NaN.

    A quadratic must be descended as in float32, as far as rounding of theta allows.
    """
    thetas = {}
    for d in (dtype, "float32"):
        theta = keras.Variable(np.full(4, 2.0), dtype=d)
        optimizer = table.make(variant, beta=0.999, learning_rate=0.0625)
        optimizer.build([theta])
        for _ in range(20):
            optimizer.apply([theta.value], [theta])
        thetas[d] = table.to_numpy(theta)
    assert (thetas["float32"] < 1.5).all()
    np.testing.assert_allclose(thetas[dtype], thetas["float32"], atol=0.04)


def test_small_learning_rate_reaches_a_float64_variable():
    theta = keras.Variable([0.0], dtype="float64")
    optimizer = table.make("msvag", learning_rate=2.0**-60)
    optimizer.apply([ops.ones(1, dtype="float64")], [theta])
    assert theta.numpy()[0] == pytest.approx(-(2.0**-60), rel=1e-12)
