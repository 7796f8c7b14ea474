"""Mistakes raise while JAX traces, before anything is compiled."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
import varpro_cases as cases

import pseudojvp as pj


# Our own messages, not those of the annotations.
pytestmark = pytest.mark.untyped

DATA = np.asarray(cases.DATA)
WEIGHTS = np.asarray(cases.WEIGHTS)


def varpro(basis=cases.basis, data=DATA, theta0=cases.START, **keywords):
    return pj.varpro(basis, data, theta0, cases.POINTS, **keywords)


def phi(change):
    return lambda theta, points: change(cases.basis(theta, points))


def operator(theta, points):
    structure = {"c": jax.ShapeDtypeStruct((3,), float)}
    return lx.FunctionLinearOperator(lambda c: c["c"], structure)


@pytest.mark.parametrize(
    ("mistake", "error", "match"),
    [
        ({"basis": 3.0}, TypeError, r"basis=...\)` got float. Pass a function"),
        ({"basis": phi(lambda p: p[:-1])}, ValueError, r"\(15, 3\), but `data` has 16"),
        ({"basis": phi(lambda p: p[:, 0])}, ValueError, r"of shape \(16,\).*\(m, n\)"),
        ({"basis": phi(lambda p: p.astype(int))}, ValueError, "returned int64 of shape"),
        ({"basis": phi(lambda p: [p])}, ValueError, "returned a list. Return a"),
        (
            {"basis": phi(lambda p: p[:, :0])},
            ValueError,
            r"\(16, 0\). Return at least",
        ),
        ({"basis": operator}, ValueError, "returned an operator from"),
        (
            {"basis": phi(lambda p: p[:3]), "data": DATA[:3]},
            ValueError,
            r"\(3, 3\): 3 coefficients fit 3 data whatever",
        ),
        (
            {"basis": phi(lambda p: p[:2]), "data": DATA[:2]},
            ValueError,
            r"\(2, 3\): 3 coefficients fit 2 data whatever",
        ),
        (
            {"basis": phi(lambda p: p[:4]), "data": DATA[:4]},
            ValueError,
            "got 4 data for 3 coefficients and 2 nonlinear parameters. Use more",
        ),
        ({"data": DATA[:-1]}, ValueError, r"\(16, 3\), but `data` has 15 rows"),
        ({"data": DATA[:, None, None]}, ValueError, r"shape \(16, 1, 1\).*`jax.vmap`"),
        ({"data": np.zeros((16, 0))}, ValueError, r"shape \(16, 0\).*k at least 1"),
        ({"data": np.zeros(0)}, ValueError, r"shape \(0,\).*at least 1"),
        ({"data": "abc"}, TypeError, r"data=...\)` got str, which is no array"),
        ({"weights": "abc"}, TypeError, r"weights=...\)` got str, which is no array"),
        (
            {"theta0": {"rate": 1, "width": np.ones(1)}},
            TypeError,
            "dtype int.*'rate'.*1.0 for 1",
        ),
        ({"theta0": {"rate": 1j}}, TypeError, "dtype complex.*two real ones"),
        ({"theta0": {}}, ValueError, "theta without a single number.*`lstsq`"),
        ({"theta0": np.zeros(0)}, ValueError, "theta without a single number.*`lstsq`"),
        ({"offset": 3.0}, TypeError, r"offset=...\)` got float. Pass a function"),
        ({"offset": lambda *_: DATA[:3]}, ValueError, r"offset=.*shape \(3,\).*\(16,\)"),
        ({"offset": lambda *_: jnp.arange(16)}, ValueError, "offset=.*floating-point"),
        ({"offset": lambda *_: 1.0}, ValueError, "offset=.*returned 1.0. Return"),
        ({"weights": WEIGHTS[:3]}, ValueError, r"shape \(3,\). Pass one of shape \(16,"),
        ({"weights": WEIGHTS[:, None]}, ValueError, r"weights=.*\(16, 1\). Pass"),
        ({"weights": 1j * WEIGHTS}, TypeError, "weights=.*complex128. Pass real"),
        ({"weights": 2.0}, ValueError, r"weights=.*shape \(\)"),
        ({"jacobian": "x"}, ValueError, "got 'x'. Pass 'exact' or 'kaufman'"),
        ({"solver": pj.QR}, TypeError, r"solver=...\)` got .*an instance of a solver"),
        ({"optimiser": "lm"}, TypeError, "optimiser=.*got 'lm'. Pass a least-squares"),
        (
            {"optimiser": optx.Newton(1e-8, 1e-8)},
            TypeError,
            "optimiser=.*got Newton.*Pass a least-squares",
        ),
        ({"adjoint": "implicit"}, TypeError, "adjoint=.*got 'implicit'. Pass an adjoint"),
        ({"max_steps": 0}, ValueError, "max_steps=.*got 0. Pass 1 or more"),
        ({"max_steps": 2.5}, ValueError, "max_steps=.*got 2.5. Pass 1 or more"),
        ({"x_scale": {"rate": 1.0}}, ValueError, "x_scale=.*the same structure"),
    ],
)
def test_mistake_raises(mistake, error, match):
    with pytest.raises(error, match=match):
        jax.eval_shape(lambda: varpro(**mistake).theta)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan])
def test_scale_that_is_not_positive_raises(scale):
    with pytest.raises(eqx.EquinoxRuntimeError, match="a number that is not positive"):
        varpro(x_scale=scale)


@pytest.mark.parametrize(
    ("mistake", "error", "match"),
    [
        ({"basis": 3.0}, TypeError, r"`projected_residual\(basis=...\)` got float"),
        ({"data": DATA[:-1]}, ValueError, r"`projected_residual\(basis=.*15 rows"),
        ({"weights": WEIGHTS[:3]}, ValueError, r"`projected_residual\(weights=...\)`"),
        ({"jacobian": None}, ValueError, r"`projected_residual\(jacobian=.*got None"),
        ({"solver": 1}, TypeError, r"`projected_residual\(solver=...\)` got 1"),
    ],
)
@pytest.mark.parametrize("method", ["__call__", "jacobian", "coefficients"])
def test_mistake_of_the_residual_raises(mistake, error, match, method):
    arguments = {"basis": cases.basis, "data": DATA, **mistake}

    def evaluate():
        function = pj.projected_residual(**arguments)
        return getattr(function, method)(cases.START, cases.POINTS)

    with pytest.raises(error, match=match):
        jax.eval_shape(evaluate)


def test_residual_of_integer_theta_raises():
    function = pj.projected_residual(cases.basis, DATA)
    with pytest.raises(TypeError, match="`projected_residual` got theta.*dtype int"):
        function({"rate": 1, "width": jnp.ones(1)}, cases.POINTS)


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 95, float("nan")])
def test_confidence_outside_of_zero_and_one_raises(confidence):
    predict = lambda: varpro().predict(cases.POINTS, confidence).value
    with pytest.raises(ValueError, match=r"confidence=...\)` got .*between 0 and 1"):
        jax.eval_shape(predict)
