"""Arrays as people have them in memory, and Python values beside them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse as sps
from drop_in_cases import conditioned, matrix_of, random_array

import pseudojvp as pj
from pseudojvp._base.call import compiled, compiled_lazily


SIZE = 6
SQUARE = matrix_of("general", SIZE, float)
ENTRIES = SQUARE.ravel()
TALL = conditioned((8, 5), [1, 2, 3, 4, 5], float, 1)
VECTOR, LONG = random_array((SIZE,), float, 2), random_array((8,), float, 3)
TIMES = np.linspace(0.0, 5.0, 40)
START = np.array([0.4, 2.0])
ONES = np.ones(40)
_INDEX = np.divmod(np.arange(SIZE**2), SIZE)


def decays(rates, times):
    return jnp.exp(-jnp.outer(times, rates))


RATES, AMPLITUDES = np.array([0.5, 3.0]), np.array([2.0, 1.0])
DATA = np.exp(-np.outer(TIMES, RATES)) @ AMPLITUDES


def _fit(data=DATA, start=START, times=TIMES, weights=ONES, x_scale=1.0):
    return pj.varpro(decays, data, start, times, weights=weights, x_scale=x_scale)


def _sparse(data=ENTRIES, row=_INDEX[0], col=_INDEX[1], vector=VECTOR):
    operator = pj.SparseLinearOperator((data, row, col, SQUARE.shape))
    return pj.sparse_solve(operator, vector, pj.SparseLU())


_SOLUTION = np.linalg.solve(SQUARE, VECTOR)
_LEAST_SQUARES = np.linalg.pinv(TALL) @ LONG
# What takes an array, one that it takes, and what is right.
TAKERS = {
    "linear_solve(operator)": (
        lambda a: pj.linear_solve(a, VECTOR, pj.LU()).value,
        SQUARE,
        _SOLUTION,
    ),
    "linear_solve(vector)": (
        lambda b: pj.linear_solve(SQUARE, b, pj.LU()).value,
        VECTOR,
        _SOLUTION,
    ),
    "factorise(operator)": (
        lambda a: pj.factorise(a, pj.QR()).solve(VECTOR),
        SQUARE,
        _SOLUTION,
    ),
    "Factorised.solve(vector)": (
        lambda b: pj.factorise(SQUARE, pj.QR()).solve(b),
        VECTOR,
        _SOLUTION,
    ),
    "lstsq(a)": (lambda a: pj.lstsq(a, LONG)[0], TALL, _LEAST_SQUARES),
    "lstsq(b)": (lambda b: pj.lstsq(TALL, b)[0], LONG, _LEAST_SQUARES),
    "lstsq(weights)": (
        lambda w: pj.lstsq(TALL, LONG, weights=w)[0],
        np.ones(8),
        _LEAST_SQUARES,
    ),
    "pinv": (pj.pinv, TALL, np.linalg.pinv(TALL)),
    "SparseLinearOperator(data)": (_sparse, ENTRIES, _SOLUTION),
    "SparseLinearOperator(row)": (
        lambda row: _sparse(row=row),
        _INDEX[0].copy(),
        _SOLUTION,
    ),
    "sparse_solve": (lambda b: _sparse(vector=b), VECTOR, _SOLUTION),
    "varpro(data)": (lambda y: _fit(y).theta, DATA, RATES),
    "varpro(theta0)": (lambda t: _fit(start=t).theta, START, RATES),
    "varpro(args)": (lambda t: _fit(times=t).theta, TIMES, RATES),
    "varpro(weights)": (lambda w: _fit(weights=w).theta, ONES, RATES),
    "varpro(x_scale)": (lambda s: _fit(x_scale=s).theta, np.ones(2), RATES),
}


def _read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def _strided(array):
    return np.repeat(array, 2, axis=0)[::2]


LAYOUTS = {
    "other-byte-order": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "read-only": _read_only,
    "strided": _strided,
    "backwards": lambda a: a[::-1].copy()[::-1],
    "fortran": lambda a: np.asfortranarray(a),
}


@pytest.mark.untyped
@pytest.mark.default("*-other-byte-order", "lstsq(a)-*")
@pytest.mark.ci("*")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TAKERS)
def test_array_of_another_layout_is_the_same_array(name, layout):
    function, array, want = TAKERS[name]
    given = LAYOUTS[layout](array)
    np.testing.assert_array_equal(given, array)
    np.testing.assert_allclose(function(given), want, rtol=1e-9, atol=1e-12)


@pytest.mark.untyped
@pytest.mark.parametrize("name", TAKERS)
def test_masked_array_is_refused(name):
    function, array, _ = TAKERS[name]
    masked = np.ma.masked_array(array, np.arange(array.size).reshape(array.shape) == 1)
    match = rf"`{name.partition('(')[0].split('.')[-1]}.* got a masked array.*`\.filled"
    with pytest.raises(TypeError, match=match):
        function(masked)


@pytest.mark.untyped
@pytest.mark.parametrize("name", ["SparseLinearOperator(data)", "varpro(data)"])
def test_array_of_a_precision_that_jax_lacks_is_refused_by_its_dtype(name):
    function, array, _ = TAKERS[name]
    with pytest.raises(TypeError, match="got ndarray of dtype .*, which is no array of"):
        function(array.astype(object))


def _aligned(array):
    """A copy at an address that XLA could use as it is."""
    buffer = np.empty(array.nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.default("LSMR(rtol=1e-12, atol=1e-12)")
@pytest.mark.ci("*")
@pytest.mark.parametrize("solver", [pj.LU(), pj.LSMR(1e-12, 1e-12)], ids=repr)
def test_factors_stay_those_of_a_matrix_that_is_overwritten_later(solver):
    size = 40  # below some tens of numbers nothing is shared
    matrix = _aligned(matrix_of("general", size, float))
    vector = random_array((size,), float, 5)
    want = np.linalg.solve(matrix, vector)
    gradient = -np.outer(np.linalg.solve(matrix.T, np.ones(size)), want)
    factorised = pj.factorise(matrix, solver)
    state = pj.linear_solve(matrix, vector, pj.LU()).state
    sparse = pj.SparseLinearOperator(sps.csr_array(matrix))
    kept = matrix.copy()
    matrix[...] = np.eye(size)
    np.testing.assert_allclose(factorised.solve(vector), want, rtol=1e-8)
    again = pj.linear_solve(kept, vector, pj.LU(), state=state).value
    np.testing.assert_allclose(again, want, rtol=1e-10)
    loss = lambda sparse: jnp.sum(pj.sparse_solve(sparse, vector, pj.SparseLU()))
    got = jax.grad(loss, allow_int=True)(sparse).data
    np.testing.assert_allclose(got.reshape(size, size), gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["data", "times", "weights"])
@pytest.mark.slow  # a second each
def test_statistics_stay_those_of_a_fit_whose_arrays_are_overwritten_later(name):
    many = np.linspace(0.0, 5.0, 200)
    exact = np.exp(-np.outer(many, RATES)) @ AMPLITUDES
    given = {
        "data": exact + 0.01 * random_array((200,), float, 6),
        "times": many,
        "weights": np.ones(200),
    }
    given = {key: _aligned(array) for key, array in given.items()}
    fit = _fit(**given)
    want = fit.statistics()
    given[name][...] = 7.0
    assert eqx.tree_equal(fit.statistics(), want)


class _Scaled(eqx.Module):
    """Decays that are doubled or halved for `True`, which is not the number 1."""

    doubled: object

    def __call__(self, rates, args):
        times, halved = args
        factor = (2.0 if self.doubled is True else 1.0) / (2.0 if halved is True else 1.0)
        return factor * decays(rates, times)


@pytest.mark.untyped
@pytest.mark.ci("*")
@pytest.mark.parametrize("place", ["basis", "args"])
def test_fit_tells_a_flag_from_the_number_that_is_equal_to_it(place):
    deviations = {}
    for flag in (1, True, 1.0, True, 1):
        flags = {"basis": 0, "args": 0, place: flag}
        args = (TIMES, flags["args"])
        fit = pj.varpro(_Scaled(flags["basis"]), DATA, START, args)
        factor = {"basis": 2.0, "args": 0.5}[place] if flag is True else 1.0
        np.testing.assert_allclose(fit.coefficients, AMPLITUDES / factor, rtol=1e-9)
        np.testing.assert_allclose(fit.predict(args).value, DATA, rtol=1e-9)
        errors = fit.statistics(absolute_sigma=True)
        deviations[flag is True] = factor * errors.coefficient_standard_deviation
    np.testing.assert_allclose(deviations[True], deviations[False], rtol=1e-9)


@pytest.mark.untyped
@pytest.mark.parametrize("compile", [compiled, compiled_lazily])
def test_compiled_function_tells_a_flag_from_the_number_that_is_equal_to_it(compile):
    function = compile(lambda array, flag: (array if flag is True else 2 * array, flag))
    for flag in (1, True, 1.0, True, 1):
        array, got = function(jnp.ones(2), flag)
        np.testing.assert_array_equal(array, np.ones(2) * (1 if flag is True else 2))
        assert type(got) is type(flag)


def test_operator_with_leaves_that_are_no_arrays():
    structure = {"a": jax.ShapeDtypeStruct((2,), float), "b": None}
    product = lambda x: {"a": jnp.array([[2.0, 1.0], [0.0, 4.0]]) @ x["a"], "b": None}
    operator = lx.FunctionLinearOperator(product, structure)
    solve = lambda b: pj.linear_solve(operator, {"a": b, "b": None}, pj.QR()).value
    value = solve(jnp.array([1.0, 2.0]))
    assert value["b"] is None
    inverse = np.array([[0.5, -0.125], [0.0, 0.25]])
    np.testing.assert_allclose(value["a"], inverse @ [1.0, 2.0], rtol=1e-12)
    jacobian = jax.jacrev(lambda b: solve(b)["a"])(jnp.ones(2))
    np.testing.assert_allclose(jacobian, inverse, atol=1e-12)
