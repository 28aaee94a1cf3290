"""The table must detect each error that ports of the method have made.

Every mutation changes one rule or one method's direction; the comparison that
`optimizers/test_table.py` makes, and nothing else, must notice.
"""

import functools

import pytest
import table
from keras import ops
from oracle import METHODS
from tiers import sampled

import svag_tf
from svag_tf import rules

BETA = 0.9
STEPS = 40

USE_RHO_S = tuple(n for n, method in METHODS.items() if method.noise == "rho s")
USE_S = tuple(n for n, method in METHODS.items() if method.noise == "s")
ADAPTED = tuple(n for n, method in METHODS.items() if method.noise)
AVERAGED = ("msgd", *ADAPTED)


def _with_beta(function, beta):
    """A rule of (..., beta) that always takes this beta."""
    return lambda *args: function(*args[:-1], beta)


def _later(function):
    """A rule of (..., t, beta) at t + 1."""
    return lambda *args: function(*args[:-2], args[-2] + 1.0, args[-1])


def _without_square_in_rho(t, beta):
    """rho/(1 - rho) for rho = (1-beta)^2 (1-beta^2t) / ((1-beta^2)(1-beta^t))."""
    rho = (1.0 - beta) * (1.0 + beta**t) / (1.0 + beta)
    return rules.has_history(t, beta) * rho / (1.0 - rho)


_squares = rules.signal_and_noise  # The right one, whatever is patched.
_average = rules.moving_average

# What is changed -> {name of the rule: its wrong version}, methods that must fail.
MUTATIONS = {
    "beta 1 % larger, averages only": (
        {"moving_average": lambda m, g, beta, betas: _average(m, g, 0.909)},
        ("mssd", *AVERAGED),
    ),
    "beta 0.99 in the bias correction": (
        {"bias_correction": _with_beta(rules.bias_correction, 0.99)},
        AVERAGED,
    ),
    "beta 1 % smaller in the noise estimate": (
        {
            name: _with_beta(getattr(rules, name), 0.891)
            for name in ("variance_factor", "mean_variance_factor")
        },
        (*USE_S, *USE_RHO_S),
    ),
    "bias correction dropped": (
        {"bias_correction": lambda t, beta: ops.ones_like(t)},
        AVERAGED,
    ),
    "beta^t in place of 1 - beta^t": (
        {"bias_correction": lambda t, beta: 1.0 / beta**t},
        AVERAGED,
    ),
    "rho = 1 in rho s": ({"mean_variance_factor": rules.variance_factor}, USE_RHO_S),
    "1 / (1 - rho) dropped from s": ({"variance_factor": rules.has_history}, USE_S),
    "rho's square dropped": (
        {"mean_variance_factor": _without_square_in_rho},
        USE_RHO_S,
    ),
    "gamma's square dropped": (
        {"signal_and_noise": lambda *args: [ops.sqrt(x) for x in _squares(*args)]},
        ADAPTED,
    ),
    "average of signs in place of sign of average": (
        {"moving_average": lambda m, g, *betas: _average(m, ops.sign(g), *betas)},
        ("mssd", "msvas_gaussian", "msvas_adam"),
    ),
    "v of |g| in place of g^2": (
        {"saturating_square": ops.abs},
        ADAPTED,
    ),
    "t one too large": (
        {
            name: _later(getattr(rules, name))
            for name in (
                "bias_correction",
                "has_history",
                "variance_factor",
                "mean_variance_factor",
            )
        },
        AVERAGED,
    ),
}


def _step_along_g(direction):
    """gamma * m becomes gamma * g, with the same gamma."""
    return lambda self, g, m, v, factor: (
        direction(self, g, m, v, factor) / ops.where(m == 0.0, 1.0, m) * g
    )


def _step_along_m(direction):
    """gamma * g becomes gamma * m: these rules use g in no other place."""
    return lambda self, g, m, v, factor: direction(self, m, m, v, factor)


def _sign_of_g(direction):
    """gamma * sign(m) becomes gamma * sign(g), with the same gamma."""
    return lambda self, g, m, v, factor: (
        ops.abs(direction(self, g, m, v, factor)) * ops.sign(g)
    )


SWAPPED = {
    "msgd": _step_along_g,
    "mssd": _sign_of_g,
    "svag": _step_along_m,
    "msvag": _step_along_g,
    "svas_gaussian": _step_along_m,
    "svas_adam": _step_along_m,
    "msvas_gaussian": _sign_of_g,
    "msvas_adam": _sign_of_g,
}


@functools.cache
def _check_unmutated(variant):
    """Without a mutation the same comparison passes, or its failures prove nothing."""
    table.check(variant, BETA, steps=STEPS)


def _assert_table_fails(variant):
    with pytest.raises(AssertionError, match="is wrong in"):
        table.check(variant, BETA, steps=STEPS)


@pytest.mark.parametrize(
    "mutation, variant",
    sampled(
        lambda case: case[1] == MUTATIONS[case[0]][1][-1],
        [(name, variant) for name in MUTATIONS for variant in MUTATIONS[name][1]],
    ),
)
def test_wrong_rule(mutation, variant, patch_rules):
    _check_unmutated(variant)
    for name, wrong in MUTATIONS[mutation][0].items():
        patch_rules(rules, name, wrong)
    _assert_table_fails(variant)


@pytest.mark.parametrize("variant", sampled(["msvag"], SWAPPED))
def test_gradient_and_momentum_swapped(variant, patch_rules):
    _check_unmutated(variant)
    cls = getattr(svag_tf, variant.partition("_")[0].upper())
    patch_rules(cls, "direction", SWAPPED[variant](cls.direction))
    _assert_table_fails(variant)
