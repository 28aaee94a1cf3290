"""The factors and the Lemma: against closed forms."""

import functools
import json
import math
import os

import numpy as np
import pytest
from conftest import config_of

from svag_tf import rules
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.simulations import variance_adaptation
from svag_tf.experiments.simulations.variance_adaptation import (
    GAMMAS,
    factor,
    minimiser,
    simulate,
    squared_errors,
)

make_config = functools.partial(config_of, "variance_adaptation")


def right(eta):
    """P[sign(g) = sign(G)]: a normal variable is above -1/eta."""
    return 0.5 * (1 + math.erf(1 / (math.sqrt(2) * eta)))


@pytest.mark.parametrize("eta", [0.1, 0.7, 1.0, 3.0, 20.0])
def test_factors(eta):
    assert factor("gradient", eta) == pytest.approx(1 / (1 + eta**2), rel=1e-6)
    assert factor("sign", eta) == pytest.approx(2 * right(eta) - 1, rel=1e-5)
    assert factor("adam", eta) == pytest.approx((1 + eta**2) ** -0.5, rel=1e-6)


@pytest.mark.parametrize("eta", [0.5, 2.0])
def test_squared_errors(eta):
    expected = {
        "gradient": GAMMAS**2 * (1 + eta**2) - 2 * GAMMAS + 1,
        "sign": GAMMAS**2 - 2 * GAMMAS * (2 * right(eta) - 1) + 1,
    }
    for kind, values in expected.items():
        errors = squared_errors(kind, eta, 20, 10_000, np.random.default_rng(0))
        assert errors.shape == (20, len(GAMMAS))
        bars = errors.std(0, ddof=1) / math.sqrt(20)
        assert (np.abs(errors.mean(0) - values) <= 5 * bars + 1e-12).all()


def test_the_minimum_of_a_parabola():
    errors = np.stack([(GAMMAS - 0.3) ** 2, 4 * (GAMMAS - 0.85) ** 2 + 1])
    np.testing.assert_allclose(minimiser(errors), [0.3, 0.85])


def test_results(tmp_path):
    config = make_config(etas=(0.5, 1.0, 3.0), batches=40, samples=2000)
    result = simulate(config, tmp_path, "the command")
    for finding in result["findings"]:
        assert finding.agrees, finding.measured
    files = ["factors.png", "lemma.png", "results.csv", "results.json", "results.md"]
    assert sorted(os.listdir(tmp_path)) == files
    everything = json.loads((tmp_path / "results.json").read_text())
    assert everything["command"] == "the command"
    assert everything["results"] == result["results"]
    assert len(result["results"]) == 6
    for row in result["results"]:
        eta = row["eta"]
        best = 1 / (1 + eta**2) if row["kind"] == "gradient" else 2 * right(eta) - 1
        assert row["theory"] == pytest.approx(best, rel=1e-5)
        assert abs(row["measured"] - best) < 4 * row["standard_error"]
        assert row["standard_error"] < 0.01
    again = simulate(config, tmp_path)["results"]
    other = simulate(make_config(**{**config.to_dict(), "seed": 1}), tmp_path)
    assert again == result["results"] != other["results"]


def test_a_wrong_factor_is_told(tmp_path, monkeypatch):
    factors = {**variance_adaptation.FACTORS, "sign": rules.gamma_sign_adam}
    monkeypatch.setattr(variance_adaptation, "FACTORS", factors)
    config = make_config(batches=40, samples=2000)
    gradient, sign, _ = simulate(config, tmp_path)["findings"]
    assert gradient.agrees and not sign.agrees
    assert "DISAGREES" in (tmp_path / "results.md").read_text()


def test_equal_minima_have_no_standard_error(tmp_path):
    """Twenty gradients with hardly any noise all have the same sign."""
    config = make_config(etas=(0.1, 1.0), batches=10, samples=20)
    result = simulate(config, tmp_path)
    row = next(r for r in result["results"] if (r["kind"], r["eta"]) == ("sign", 0.1))
    assert row["measured"] == pytest.approx(1.0, rel=1e-12)
    assert row["standard_error"] == 0.0 and row["standard_errors_off"] is None
    finding = result["findings"][1]
    assert finding.agrees and "the same for η = 0.1, where" in finding.measured
    assert "| 1.00000 ± 0.00000 | 1.00000 | - |" in (
        (tmp_path / "results.md").read_text()
    )

    config = make_config(etas=(0.1,), batches=10, samples=20)
    finding = simulate(config, tmp_path)["findings"][1]
    assert finding.agrees is None and "no standard error" in finding.measured
    assert "| undecided |" in (tmp_path / "results.md").read_text()
    everything = json.loads((tmp_path / "results.json").read_text())
    assert everything["findings"][1]["agrees"] is None


@pytest.mark.parametrize("offset", [0.0, 1e-15, -3e-16])
def test_round_off_is_no_standard_error(offset):
    """The fit's round-off differs between instruction sets."""
    errors = np.stack([(GAMMAS - 1.0) ** 2, (GAMMAS - (1.0 + offset)) ** 2])
    row = variance_adaptation._result("sign", 0.1, errors)
    assert row["standard_error"] == 0.0 and row["standard_errors_off"] is None


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"etas": (0.0,)}, "etas must be finite numbers > 0, at least one"),
        ({"etas": (1.0, 1.0)}, "none twice"),
        ({"batches": 1}, "batches must be a whole number >= 10. Received: batches=1"),
        ({"samples": 0}, "samples must be a whole number >= 10"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
    ],
)
def test_what_is_refused_before_any_work(tmp_path, fields, message):
    with pytest.raises(ExperimentError, match=message):
        simulate(make_config(**fields), tmp_path / "a")
    assert os.listdir(tmp_path) == []
