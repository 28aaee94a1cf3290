"""The oracle itself, against numbers worked out by hand."""

import numpy as np
import pytest
from oracle import METHODS, Oracle, rho

# beta = 1/2, g = 1, 3, 0:
#   m~ = 1/2, 7/4, 7/8      v~ = 1/2, 19/4, 19/8      1 - beta^t = 1/2, 3/4, 7/8
#   m  = 1,   7/3, 1        v  = 1,   19/3, 19/7
#   t = 2: weights 2/3, 1/3       rho = 5/9   v - m^2 = 8/9    s = 2   rho s = 10/9
#   t = 3: weights 4/7, 2/7, 1/7  rho = 3/7   v - m^2 = 12/7   s = 3   rho s = 9/7
# erf from a table: erf(7/6), erf(7/sqrt(20)), erf(sqrt(7/18)).
GRADIENTS = (1.0, 3.0, 0.0)
DIRECTIONS = {
    "msgd": (1, 7 / 3, 1),
    "ssd": (1, 1, 0),
    "mssd": (1, 1, 1),
    "svag": (1, 49 / 67 * 3, 0),
    "msvag": (1, 49 / 59 * 7 / 3, 7 / 16),
    "svas_gaussian": (1, 0.90104, 0),
    "svas_adam": (1, (49 / 67) ** 0.5, 0),
    "msvas_gaussian": (1, 0.97314, 0.62218),
    "msvas_adam": (1, 7 / 57**0.5, (7 / 19) ** 0.5),
}


@pytest.mark.parametrize("method", METHODS)
def test_by_hand(method):
    oracle = Oracle(method, 0.5, 0.5, ())
    updates = [float(oracle.update(g)) for g in GRADIENTS]
    tolerance = 1e-5 if "gaussian" in method else 1e-14
    np.testing.assert_allclose(updates, np.multiply(0.5, DIRECTIONS[method]), tolerance)
    assert (oracle.m_tilde, oracle.v_tilde) == (7 / 8, 19 / 8)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("t", [1, 2, 3, 10, 1000])
def test_rho_of_squared_weights_is_the_closed_form(beta, t):
    closed = (1 - beta) * (1 + beta**t) / ((1 + beta) * (1 - beta**t))
    as_in_msvag = (
        (1 - beta) ** 2 * (1 - beta ** (2 * t)) / ((1 - beta**2) * (1 - beta**t) ** 2)
    )
    np.testing.assert_allclose([closed, as_in_msvag], rho(t, beta), 1e-11)
