"""The picture of a fit shows its data, its curve, its band and its residuals."""

import importlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
import varpro_cases as cases
from matplotlib.figure import Figure

import pseudojvp as pj
from pseudojvp._base.optional import import_late


matplotlib.use("Agg")

WEIGHTS = cases.WEIGHTS.at[5].set(0.0)
COUNTED = np.arange(16) != 5


@pytest.fixture(scope="module", name="fit")
def _fit():
    return cases.fit(weights=WEIGHTS)


def _axes():
    return Figure().subplots(2, sharex=True)


def _lines(axes):
    return [np.asarray(line.get_xydata()).T for line in axes.get_lines()]


@pytest.mark.slow  # two seconds
def test_data_and_curve_are_above_and_residuals_below(fit):
    upper, lower = fit.plot(_axes())
    dots, hollow, curve = _lines(upper)
    points, data = np.asarray(cases.POINTS), np.asarray(cases.DATA)
    np.testing.assert_array_equal(dots, [points[COUNTED], data[COUNTED]])
    np.testing.assert_array_equal(hollow, [points[~COUNTED], data[~COUNTED]])
    value = fit.predict(cases.POINTS).value
    np.testing.assert_allclose(curve, [points, value], rtol=1e-14)
    dots, hollow, _ = _lines(lower)
    np.testing.assert_array_equal(dots[1], fit.residual[COUNTED])
    np.testing.assert_array_equal(hollow[1], [0])
    assert lower.get_ylabel() == "W (data − fit)"


def test_band_is_that_of_the_prediction(fit):
    upper, _ = fit.plot(_axes(), confidence=0.8)
    (band,) = upper.collections
    want = fit.predict(cases.POINTS, 0.8)
    edges = band.get_paths()[0].vertices
    middle = edges[np.isclose(edges[:, 0], cases.POINTS[7])][:, 1]
    np.testing.assert_allclose(
        [middle.min(), middle.max()], [want.lower[7], want.upper[7]], rtol=1e-12
    )


def test_with_absolute_sigma_data_have_error_bars(fit):
    upper, _ = fit.plot(_axes(), absolute_sigma=True)
    (bars,) = upper.containers
    segments = np.array(bars[2][0].get_segments())
    half = (segments[:, 1, 1] - segments[:, 0, 1]) / 2
    want = np.where(COUNTED, 1 / np.where(COUNTED, WEIGHTS, 1), 0)
    np.testing.assert_allclose(half, want, rtol=1e-12, atol=1e-12)


def test_abscissae_can_be_given_and_are_sorted_for_the_curve(fit):
    x = -(np.asarray(cases.POINTS) ** 2)
    upper, _ = fit.plot(_axes(), x=x)
    dots, _, curve = _lines(upper)
    np.testing.assert_array_equal(dots[0], x[COUNTED])
    np.testing.assert_array_equal(curve[0], x[::-1])
    np.testing.assert_allclose(curve[1], fit.predict(cases.POINTS).value[::-1])


@pytest.mark.slow  # a program for other points
def test_a_finer_curve_is_drawn_at_other_points(fit):
    fine = np.linspace(-0.5, 4, 31)
    upper, _ = fit.plot(_axes(), curve=(fine, fine))
    *_, curve = _lines(upper)
    np.testing.assert_allclose(curve, [fine, fit.predict(fine).value])


@pytest.mark.slow  # a program more
def test_columns_are_chosen_and_drawn_by_themselves():
    data = cases.columns(8)
    fit = cases.fit(data, cases.WEIGHTS)
    upper, lower = fit.plot(_axes(), columns=[7, 2])
    curves = _lines(upper)[1::2]
    value = fit.predict(cases.POINTS).value
    np.testing.assert_allclose([curve[1] for curve in curves], value[:, [7, 2]].T)
    dots = _lines(lower)[:2]
    np.testing.assert_array_equal([dot[1] for dot in dots], fit.residual[:, [7, 2]].T)
    assert upper.get_title("left") == "2 of 8 columns"
    labels = [text.get_text() for text in upper.get_legend().get_texts()]
    assert labels == ["column 7", "column 2"]
    upper, _ = fit.plot(_axes())
    assert len(_lines(upper)) == 2 * 6
    with pytest.raises(ValueError, match=r"got \[8\] for data of 8 columns"):
        fit.plot(columns=[0, 8])


@pytest.mark.slow  # programs of complex numbers
def test_complex_data_have_real_and_imaginary_part_and_no_band():
    fit = pj.varpro(
        cases.complex_basis, cases.COMPLEX_DATA, cases.COMPLEX_START, cases.POINTS
    )
    upper, lower = fit.plot(_axes())
    real, real_curve, imaginary, imaginary_curve = _lines(upper)
    np.testing.assert_array_equal(real[1], cases.COMPLEX_DATA.real)
    np.testing.assert_array_equal(imaginary[1], cases.COMPLEX_DATA.imag)
    value = fit.predict(cases.POINTS).value
    np.testing.assert_allclose(real_curve[1] + 1j * imaginary_curve[1], value)
    assert len(upper.collections) == 0
    np.testing.assert_array_equal(_lines(lower)[1][1], fit.residual.imag)


@pytest.mark.slow  # opens a window's figure
def test_without_axes_there_is_a_new_figure(fit):
    pyplot = import_late("matplotlib.pyplot")
    upper, lower = fit.plot()
    assert upper.figure is lower.figure is pyplot.gcf()
    assert upper.get_position().height > 2 * lower.get_position().height
    pyplot.close(upper.figure)


@pytest.mark.slow  # raises while it imports
def test_without_matplotlib_the_extra_is_named(fit, monkeypatch):
    present = importlib.import_module

    def without(name):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return present(name)

    import_late.cache_clear()
    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(ImportError, match=r'pip install "pseudojvp\[plot\]"'):
        fit.plot()


def test_arrays_that_do_not_fit_are_refused(fit):
    with pytest.raises(ValueError, match=r"got 1 axes. Pass two"):
        fit.plot(Figure().subplots())
    with pytest.raises(ValueError, match=r"plot\(x=...\)` got an array of shape \(3,\)"):
        fit.plot(_axes(), x=np.arange(3))
    with pytest.raises(ValueError, match=r"got x of shape \(3,\) for 16 rows"):
        fit.plot(_axes(), curve=(cases.POINTS, np.arange(3)))
    with pytest.raises(ValueError, match=r"plot\(confidence=...\)` got 2.0"):
        fit.plot(_axes(), confidence=2.0)
    fits = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), fit)
    with pytest.raises(ValueError, match="with a batch axis"):
        fits.plot()
