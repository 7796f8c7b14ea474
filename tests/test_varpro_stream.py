"""`varpro_batch` of data that are read in chunks: memory maps and iterators."""

import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import pseudojvp as pj


_TIMES = np.linspace(0, 3, 12)
_RATES = np.random.default_rng(0).uniform([0.4, 2.5], [0.8, 4.0], (10, 2))
_DATA = np.exp(-_RATES[:, None, :] * _TIMES[:, None]) @ [1.0, 2.0]
_START = np.array([0.5, 3.0])
_WEIGHTS = np.random.default_rng(2).uniform(0.5, 2, _DATA.shape)
_TRACES = []
_BAD = 9  # in the last chunk, of which copies fill the rest


def _decays(theta, times):
    _TRACES.append(theta)
    return jnp.exp(-jnp.outer(times, theta))


def _fit(data, weights=None, *, theta0=_START, args=_TIMES, **keywords):
    """By one program for chunks of 4."""
    settings = {"batch_size": 4, "throw": False, "in_axes": {"weights": 0}}
    return pj.varpro_batch(
        _decays, data, theta0, args, weights=weights, **(settings | keywords)
    )


class _Stored:
    """As a data set of h5py or zarr."""

    def __init__(self, array):
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype
        self.largest = 0

    def __getitem__(self, key):
        self.largest = max(self.largest, len(self._array[key]))
        return self._array[key]


def _joined(chunks):
    """Rates, codes of the results, and the number of members in each chunk."""
    chunks = list(chunks)
    rates = np.concatenate([fits.theta for fits in chunks])
    failed = [np.asarray(fits.result != optx.RESULTS.successful) for fits in chunks]
    return rates, np.concatenate(failed), [len(fits) for fits in chunks]


def _data(bad=_BAD):
    data = _DATA.copy()
    data[bad, 3] = np.nan
    return data


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    file = tmp_path_factory.mktemp("stream") / "data.npy"
    np.save(file, _data())
    return np.load(file, mmap_mode="r")


@pytest.fixture(scope="module")
def shown(mapped):
    """The fits of a memory map, and what was on the screen."""
    with contextlib.redirect_stderr(io.StringIO()) as screen:
        joined = _joined(_fit(mapped, _WEIGHTS, progress=True))
    return joined, screen.getvalue()


def _in_one_buffer():
    buffer = np.empty((4, 12))
    for start in (0, 4, 8):
        part = _data()[start : start + 4]
        buffer[: len(part)] = part
        yield buffer[: len(part)]


def _weights():
    return (_WEIGHTS[start : start + 4] for start in (0, 4, 8))


@pytest.mark.slow  # two seconds
def test_members_of_a_memory_map_have_their_order(shown):
    rates, _, sizes = shown[0]
    assert sizes == [4, 4, 2]
    np.testing.assert_allclose(rates[:_BAD], _RATES[:_BAD], rtol=1e-8)


@pytest.mark.slow  # two seconds
def test_failed_member_of_a_memory_map_is_told_alone(shown):
    np.testing.assert_array_equal(shown[0][1], np.arange(10) == _BAD)


def test_bar_counts_the_chunks_of_a_memory_map(shown):
    assert "3/3" in shown[1]


def test_array_that_is_read_by_slices_is_read_a_chunk_at_a_time(shown):
    stored = _Stored(_data())
    rates, _, _ = _joined(_fit(stored, _Stored(_WEIGHTS)))
    np.testing.assert_array_equal(rates, shown[0][0])
    assert stored.largest == 4


def test_items_of_an_iterator_may_be_in_one_buffer(shown):
    rates, _, sizes = _joined(_fit(_in_one_buffer(), _weights()))
    np.testing.assert_array_equal(rates, shown[0][0])
    assert sizes == [4, 4, 2]


def test_all_chunks_are_fitted_by_one_program(shown):
    before = len(_TRACES)
    sizes = _joined(
        _fit(iter(np.split(_DATA[:9], [4, 5])), iter(np.split(_WEIGHTS[:9], [4, 5])))
    )[2]
    assert sizes == [4, 1, 4]
    assert len(_TRACES) == before > 0


@pytest.mark.slow  # two more programs
def test_statistics_of_a_padded_chunk_are_those_of_its_members(shown):
    *_, last = _fit(_in_one_buffer(), _weights())
    assert last.statistics().theta_covariance.shape == (2, 2, 2)
    assert last[0].statistics().degrees_of_freedom == 8


@pytest.mark.slow  # a second
def test_throw_raises_at_its_chunk_and_not_before(mapped):
    adjoint = pj.PseudoinverseAdjoint(throw=False)  # the program of the others
    fits = _fit(mapped, _WEIGHTS, throw=True, adjoint=adjoint)
    assert len(next(fits)) == len(next(fits)) == 4
    with pytest.raises(Exception, match="got NaN, Inf or a negative weight"):
        next(fits)


def test_what_cannot_be_read_is_raised_after_the_chunk_before():
    def broken():
        yield _DATA[:4]
        raise OSError("no such file")

    fits = _fit(broken(), _weights())
    assert len(next(fits)) == 4
    with pytest.raises(OSError, match="no such file"):
        next(fits)


@pytest.mark.slow  # one more program
@pytest.mark.untyped  # the check of a pytree warns that an iterator is a leaf
def test_starts_and_args_may_come_with_the_data():
    starts = ({"rates": 1.1 * _RATES[start : start + 5]} for start in (0, 5))
    shifts = (np.full((5, 12), _TIMES + shift) for shift in (0.0, 0.1))
    times = _TIMES + np.repeat([[0.0], [0.1]], 5, axis=0)
    data = np.exp(-_RATES[:, None, :] * times[:, :, None])
    fits = pj.varpro_batch(
        lambda theta, times: _decays(theta["rates"], times),
        iter(np.split(data @ [1.0, 2.0], 2)),
        starts,
        shifts,
        in_axes={"args": 0},
    )
    rates = np.concatenate([chunk.theta["rates"] for chunk in fits])
    np.testing.assert_allclose(rates, _RATES, rtol=1e-8)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("items", "keywords", "match"),
    [
        ([], {}, "iterator without a single item"),
        ([np.ones(12)], {}, r"item 0 has shape \(12,\)"),
        ([np.ones((0, 12))], {}, "without empty axes"),
        ([_DATA], {"weights": iter([])}, "weights=.*ended before item 0"),
        ([_DATA], {"weights": iter([np.ones((3, 12))])}, "beside 10 members"),
        ([_DATA], {"in_axes": {"theta0": 0}}, "got 0 for `theta0`, but `data` is an"),
        ([_DATA], {"batch_size": 0}, "batch_size=...\\)` got 0"),
    ],
)
def test_bad_iterators_are_named_when_called(items, keywords, match):
    with pytest.raises(ValueError, match=match):
        next(pj.varpro_batch(_decays, iter(items), _START, _TIMES, **keywords))


@pytest.mark.parametrize(
    "item", [np.ones((4, 11)), np.ones((4, 12), np.float32)], ids=["length", "dtype"]
)
def test_items_that_differ_are_named(item, shown):
    fits = _fit(iter([_DATA[:4], item]), iter([_WEIGHTS[:4]] * 2))
    next(fits)
    with pytest.raises(ValueError, match="whose item 1 has shape"):
        next(fits)


@pytest.mark.untyped
def test_iterator_beside_an_array_is_named():
    with pytest.raises(TypeError, match="weights=.*got an iterator, but `data` is none"):
        _fit(_DATA, _weights())


@pytest.mark.parametrize("way", ["jit", "grad"])
@pytest.mark.parametrize("kind", ["iterator", "map"])
def test_what_is_read_while_fits_run_cannot_be_traced(mapped, kind, way):
    def of_start(start):
        data = mapped if kind == "map" else iter([_DATA])
        return jnp.sum(next(_fit(data, theta0=start, in_axes={})).theta)

    with pytest.raises(TypeError, match="within `jax.jit`, `jax.grad` or `jax.vmap`"):
        getattr(jax, way)(of_start)(_START)


@pytest.mark.slow  # one more program
def test_traced_basis_of_an_iterator_is_named():
    def of_times(times):
        basis = lambda theta, _: _decays(theta, times)
        return jnp.sum(next(pj.varpro_batch(basis, iter([_DATA]), _START)).theta)

    with pytest.raises(TypeError, match="within `jax.jit`, `jax.grad` or `jax.vmap`"):
        jax.grad(of_times)(jnp.asarray(_TIMES))
