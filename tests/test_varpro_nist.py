"""Fits of the NIST StRD problems, with the default settings, beside certified values.

Models and data are those of the examples.
"""

import importlib.util
import pathlib

import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import pseudojvp as pj


_PATH = pathlib.Path(__file__).parent.parent / "examples" / "nist_models.py"
_SPEC = importlib.util.spec_from_file_location("nist_models", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
_nist = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_nist)

_PROBLEMS = {problem.name: problem for problem in _nist.load_problems()}
# Programs of their own, ten seconds for each problem. In CI one with an offset, and one
# of peaks.
_CI = ("Roszman1", "Gauss3")
_CASES = [
    pytest.param(
        name,
        start,
        marks=pytest.mark.slow if name in _CI and start == 0 else pytest.mark.nightly,
        id=f"{name}-start{start + 1}",
    )
    for name in _PROBLEMS
    for start in (0, 1)
]


@pytest.mark.parametrize(("name", "start"), _CASES)
def test_fit_agrees_with_the_certified_parameters_and_deviations(name, start):
    problem = _PROBLEMS[name]
    model = problem.model
    theta0 = model.theta(jnp.asarray(problem.starts[start]))
    fit = pj.varpro(model.basis, problem.y, theta0, problem.x, offset=model.offset)
    _check_certified(problem, fit)


@pytest.mark.parametrize(("name", "start"), _CASES)
def test_bounds_that_do_not_bind_change_no_answer(name, start):
    problem = _PROBLEMS[name]
    model = problem.model
    theta0 = model.theta(jnp.asarray(problem.starts[start]))
    room = 100 * (1 + jnp.abs(theta0))
    bounds = theta0 - room, theta0 + room
    fit = pj.varpro(
        model.basis, problem.y, theta0, problem.x, offset=model.offset, bounds=bounds
    )
    assert fit.held is not None
    assert not np.any(fit.held)
    _check_certified(problem, fit)


def _check_certified(problem, fit):
    parameters, deviation = _nist.carry_back(problem, fit)
    assert fit.result == optx.RESULTS.successful
    np.testing.assert_allclose(parameters, problem.certified, rtol=1e-6)
    # Data in float64 and a residual computed in it, each rounded: seen with Lanczos1
    # alone, whose residual is 1e-13 of the data.
    rounding = np.finfo(float).eps * np.linalg.norm(problem.y)
    rtol = max(1e-6, 2 * rounding / np.linalg.norm(fit.residual))
    np.testing.assert_allclose(deviation, problem.certified_deviation, rtol=rtol)


def test_all_27_problems_are_there():
    assert len(_PROBLEMS) == 27
