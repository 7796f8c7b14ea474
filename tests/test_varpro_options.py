"""Optimisers, `x_scale` and `progress`."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import varpro_cases as cases
from checks import assert_close

import pseudojvp as pj
from pseudojvp._varpro.progress import EvaluationLine


@pytest.mark.slow  # a program for each
@pytest.mark.parametrize(
    "optimiser",
    [
        optx.GaussNewton(1e-8, 1e-8),
        optx.Dogleg(1e-8, 1e-8),
        optx.BFGS(1e-10, 1e-10),
        optx.IndirectLevenbergMarquardt(1e-8, 1e-8),
    ],
    ids=lambda optimiser: type(optimiser).__name__,
)
def test_optimisers_agree(optimiser):
    fit = cases.fit(optimiser=optimiser)
    assert cases.successful(fit)
    assert_close(cases.unknowns(fit), cases.unknowns(cases.fit()), 1e-9)


@pytest.mark.slow  # a second program
@pytest.mark.parametrize("rate", [1.2, 0.0, 1e-15, 100.0])
def test_levenberg_marquardt_takes_the_steps_of_optimistix(rate):
    """Whose own loop runs where a part is not the default, here what it shows."""
    silent = lambda **_: None
    by_optimistix = optx.LevenbergMarquardt(1e-5, 1e-5, verbose=silent)
    start = {**cases.START, "rate": jnp.array(rate)}
    want = cases.fit(start=start, optimiser=by_optimistix)
    fit = cases.fit(start=start)
    assert_close(cases.unknowns(fit), cases.unknowns(want), 1e-9)
    for name in ("num_steps", "polishing_steps"):
        assert fit.stats[name] == want.stats[name] > 0


@pytest.mark.slow  # a program for each
@pytest.mark.parametrize("jacobian", ["exact", "kaufman"])
def test_jacobians_agree(jacobian):
    fit = cases.fit(jacobian=jacobian)
    assert_close(cases.unknowns(fit), cases.unknowns(cases.fit()), 1e-9)


@pytest.mark.slow  # a second program
def test_scale_makes_the_fit_independent_of_units():
    def basis(theta, points):
        scaled = {"rate": 1e-9 * theta["rate"], "width": 1e6 * theta["width"]}
        return cases.basis(scaled, points)

    start = {"rate": 1e9 * cases.START["rate"], "width": 1e-6 * cases.START["width"]}
    scales = {"rate": 1e9, "width": np.array([1e-6])}
    arguments = basis, cases.DATA, start, cases.POINTS
    fit = pj.varpro(*arguments, weights=cases.WEIGHTS, x_scale=scales)
    want = cases.fit().theta
    assert_close(fit.theta["rate"], 1e9 * want["rate"], 1e-9)
    assert_close(fit.theta["width"], 1e-6 * want["width"], 1e-9)


@pytest.mark.slow  # a second program
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e3, 1e12])
def test_success_with_a_wrong_scale_means_stationary(scale):
    fit = cases.fit(x_scale=scale)
    gap = abs(fit.theta["rate"] - cases.fit().theta["rate"])
    assert gap < 1e-6 or not cases.successful(fit)


@pytest.mark.slow  # one more program, which cannot be cached
def test_progress_logs_evaluations(capfd):
    def basis(theta, points):
        return jnp.exp(-theta * points)[:, None]

    data = jnp.exp(-0.8 * cases.POINTS) + 0.01 * jnp.cos(9 * cases.POINTS)
    fit = pj.varpro(basis, data, jnp.array(0.5), cases.POINTS, progress=True)
    jax.block_until_ready(fit.theta)
    jax.effects_barrier()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) >= fit.stats["num_steps"] > 1
    norms = [float(line.split("= ")[1]) for line in lines]
    want = jnp.linalg.norm(fit.residual) / jnp.linalg.norm(data)
    np.testing.assert_allclose(min(norms), want, rtol=1e-4)
    assert lines[0].startswith("varpro: evaluation 1, ‖r‖/‖W y‖ = ")


def test_progress_overwrites_one_line_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    line = EvaluationLine()
    line.begin()
    line.show(0.5)
    line.show(0.25)
    shown = capsys.readouterr().err
    assert shown.count("\r") == 2
    assert "\n" not in shown
    assert "evaluation 2, ‖r‖/‖W y‖ = 2.500000e-01" in shown
