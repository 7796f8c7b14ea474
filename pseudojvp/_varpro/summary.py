"""The numbers of a report, from the statistics of a fit, and what is wrong with them."""

import dataclasses
import math
import time
from typing import Any

import equinox as eqx
import jax.core
import jax.tree_util as jtu
import numpy as np

from .._base.optional import import_late
from .data_sets import listed
from .failure import words_of
from .parameters import names_of
from .report import VarProEstimates, VarProReport
from .statistics import Errors, VarProStatistics


_NAMED = 5  # in one warning
_MOST_PAIRS = 100
_WEAK = 0.1  # correlations below are left out
_STRONG = 0.99  # and above are warned of
_PARALLEL = 0.999  # of two columns, as the cosine of their angle
_SECONDS = "_seconds"
_HELD = {-1: "at its lower bound", 1: "at its upper bound", 2: "fixed"}


def report(
    fit: Any,
    statistics: VarProStatistics,
    errors: Errors,
    confidence: float,
    absolute_sigma: bool,
) -> VarProReport:
    """The report of a fit from its statistics; everything on the host."""
    _, _, observations = fit._context()
    statistics, errors = jtu.tree_map(np.asarray, (statistics, errors))
    held = held_of(fit)
    names = all_names(fit)
    q = len(held)
    sets = [np.asarray(c) for c in listed(fit.coefficients)]
    ranks = [int(np.min(np.asarray(rank))) for rank in listed(fit.rank)]
    held_coefficients = [np.zeros(c.shape, int) for c in sets]
    if fit.held_coefficients is not None:
        held_coefficients = [np.asarray(h) for h in listed(fit.held_coefficients)]
    deficient = any(
        bool(np.any(np.asarray(rank) < np.sum(side == 0, axis=0)))
        for rank, side in zip(listed(fit.rank), held_coefficients, strict=True)
    )
    freedom = int(statistics.degrees_of_freedom)
    quantile = quantile_of(confidence, freedom, absolute_sigma)
    theta = _estimates(
        names[:q],
        np.concatenate([np.ravel(leaf) for leaf in jtu.tree_leaves(fit.theta)]),
        statistics.theta_standard_deviation,
        quantile,
        held,
    )
    coefficients = _estimates(
        names[q:],
        _raveled(sets),
        _raveled(listed(statistics.coefficient_standard_deviation)),
        quantile,
        _raveled(held_coefficients),
        _raveled([np.full(c.shape, not np.iscomplexobj(c)) for c in sets]),
    )
    count, chi_square, r_squared, log_weights = _sums(fit, observations)
    fitted = int(errors.parameters)
    aic, bic = _criteria(count, fitted, chi_square, log_weights, bool(absolute_sigma))
    if fit._prior() is not None or fit._loss() is not None:
        aic = bic = math.nan
    failure = words_of(fit.result)
    made = VarProReport(
        theta=theta,
        coefficients=coefficients,
        correlations=_strongest(statistics, names, [c.shape for c in sets]),
        confidence=float(confidence),
        absolute_sigma=bool(absolute_sigma),
        data=count,
        parameters=fitted,
        degrees_of_freedom=freedom,
        chi_square=chi_square,
        reduced_chi_square=float(statistics.reduced_chi_square),
        r_squared=r_squared,
        aic=aic,
        bic=bic,
        rank=sum(ranks),
        columns=sum(len(c) for c in sets),
        steps=int(fit.stats["num_steps"]),
        polishing_steps=int(fit.stats["polishing_steps"]),
        seconds=vars(fit).get(_SECONDS),
        successful=not failure,
        failure=failure,
        warnings=[],
    )
    warnings = _warnings(made, errors, deficient)
    if fit._prior() is not None:
        warnings.append(
            "With priors, errors, degrees of freedom and the reduced chi-square count "
            "these as data; chi-square and R² do not, and there is no AIC and BIC."
        )
    if fit._loss() is not None:
        warnings.append(
            "Of another loss than squares, errors and the reduced chi-square are those "
            "of the weighted squares at the end; chi-square and R² are of all data "
            "alike, and there is no AIC and BIC."
        )
    return dataclasses.replace(made, warnings=warnings)


def timed(fit: Any, began: float) -> Any:
    """Returns `fit`, which is computed, with the time since `began` as an attribute.

    No field, for it is a fact of this object, not of the fit: it must neither be traced,
    nor make another program of another time, nor come out of a program with a fit of
    which it is not the time.
    """
    object.__setattr__(fit, _SECONDS, time.perf_counter() - began)
    return fit


def check_one_fit(fit: Any, method: str) -> None:
    """Raises where `fit` is not one fit whose numbers are known."""
    arrays = jtu.tree_leaves(eqx.filter(fit, eqx.is_array))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in arrays):
        raise TypeError(
            f"`VarProFit.{method}()` was called while JAX traces. Call it outside of "
            "`jax.jit`, `jax.vmap` and `jax.grad`, or use `statistics()` within."
        )
    if np.ndim(fit.cost) != 0:
        raise ValueError(
            f"`VarProFit.{method}()` was called of fits with a batch axis: `cost` has "
            f"the shape {np.shape(fit.cost)}. Take one: "
            "`jax.tree.map(lambda leaf: leaf[0], fit)`, or fit by `varpro_batch`."
        )


def check_confidence(confidence: float, method: str) -> None:
    if not 0 < confidence < 1:
        raise ValueError(
            f"`VarProFit.{method}(confidence=...)` got {confidence}. Pass a "
            "probability between 0 and 1."
        )


def all_names(fit: Any) -> list[str]:
    """Of θ and then c, in the order of `ravel`."""
    names = names_of(fit.theta)
    c = "coefficients" if any(name.split("[")[0] == "c" for name in names) else "c"
    several = type(fit.coefficients) is tuple
    for number, coefficients in enumerate(listed(fit.coefficients)):
        of_set = f"{c}[{number}]" if several else c
        indices = np.ndindex(np.shape(coefficients))
        names += [f"{of_set}[{', '.join(map(str, index))}]" for index in indices]
    return names


def place_of_coefficient(fit: Any, place: int) -> tuple[int, int, int]:
    """The data set, row and column of a coefficient, by its place among all of them."""
    for number, coefficients in enumerate(listed(fit.coefficients)):
        if place < np.size(coefficients):
            index = np.unravel_index(place, np.shape(coefficients))
            row, column = (int(i) for i in (*index, 0)[:2])
            return number, row, column
        place -= np.size(coefficients)
    raise IndexError(place)


def quantile_of(confidence: float, freedom: int, normal: bool) -> float:
    """t with P(|T| < t) = `confidence`, of Student's or the normal distribution."""
    special = import_late("scipy.special")
    if normal:
        return float(special.ndtri(0.5 + 0.5 * confidence))
    return float(special.stdtrit(freedom, 0.5 + 0.5 * confidence))


def held_of(fit: Any) -> np.ndarray:
    """Of each number of θ why it is held, or 0."""
    if fit.held is None:
        return np.zeros(sum(np.size(leaf) for leaf in jtu.tree_leaves(fit.theta)), int)
    return np.concatenate([np.ravel(leaf) for leaf in jtu.tree_leaves(fit.held)])


def _estimates(
    names, value, deviation, quantile: float, held, real: Any = True
) -> VarProEstimates:
    """`real` says of which numbers, for complex ones have no interval."""
    value = np.asarray(value)
    wide = np.complex128 if np.iscomplexobj(value) else np.float64
    value = value.astype(wide)
    deviation = np.where(held == 0, deviation.astype(np.float64), np.nan)
    lower, upper = (
        np.where(real, value.real + sign * quantile * deviation, np.nan)
        for sign in (-1, 1)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = deviation / np.abs(value)
    remarks = np.array([_HELD.get(int(h), "") for h in held], dtype=object)
    names = np.array(names, dtype=object)
    return VarProEstimates(names, value, deviation, lower, upper, relative, remarks)


def _strongest(statistics: VarProStatistics, names: list[str], shapes: list):
    """The strongest, of at least `_WEAK`: some, and all that are to be warned of."""
    q = len(names) - sum(map(math.prod, shapes))
    found, start = [], q
    for matrix, shape in zip(listed(statistics.correlation), shapes, strict=True):
        end = start + math.prod(shape)
        of_set = _correlations(matrix, names[:q] + names[start:end], shape)
        # Those of θ alone are in each.
        found += [pair for pair in of_set if pair[1] not in names[:q] or start == q]
        start = end
    found.sort(key=lambda pair: -abs(pair[2]))
    strong = sum(abs(value) > _STRONG for *_, value in found)
    return found[: max(_MOST_PAIRS, strong)]


def _correlations(matrix: np.ndarray, names: list[str], shape: tuple):
    """Those of θ and the coefficients of one data set."""
    matrix = np.abs(matrix) if np.iscomplexobj(matrix) else matrix
    matrix = matrix[None] if matrix.ndim == 2 else matrix
    k, size, _ = matrix.shape
    q = len(names) - math.prod(shape)
    first, second = np.triu_indices(size, 1)
    values = matrix[:, first, second].astype(np.float64)
    values[1:, second < q] = 0  # of θ alone: as of the first column
    strength = np.abs(np.nan_to_num(values)).ravel()
    most = max(_MOST_PAIRS, int(np.sum(strength > _STRONG)))
    strongest = np.argsort(-strength, kind="stable")[:most]
    found = []
    for column, pair in zip(*np.unravel_index(strongest, values.shape), strict=True):
        if abs(values[column, pair]) >= _WEAK:
            both = (first[pair], second[pair])
            a, b = (names[j if j < q else q + (j - q) * k + column] for j in both)
            found.append((a, b, float(values[column, pair])))
    return found


def _sums(fit: Any, observations) -> tuple[int, float, float, float]:
    """How many data count, ‖r‖², R² and Σ ln W²."""
    of_sets = zip(listed(observations), listed(fit.residual), strict=True)
    sums = [_sums_of_set(*of_set) for of_set in of_sets]
    count, chi_square, total, log_weights = map(sum, zip(*sums, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        r_squared = float(1 - np.divide(chi_square, total))
    return count, chi_square, r_squared, log_weights


def _sums_of_set(observations, residual) -> tuple[int, float, float, float]:
    """How many data count, ‖r‖², ‖W (data − mean)‖² and Σ ln W²."""
    data = np.asarray(observations.data)
    weights = observations.weights
    weights = np.ones((len(data), 1)) if weights is None else np.asarray(weights)
    weights = weights[:, None] if weights.ndim == 1 else weights
    weights = np.broadcast_to(weights.astype(np.float64), data.shape)
    of_datum = 2 if np.iscomplexobj(residual) else 1
    wide = np.complex128 if of_datum == 2 else np.float64
    chi_square = float(np.sum(np.abs(np.asarray(residual).astype(wide)) ** 2))
    squares = np.sum(weights**2, axis=0)  # zero: nothing of the column counts
    mean = np.sum(weights**2 * data, axis=0) / np.where(squares == 0, 1, squares)
    total = float(np.sum(np.abs(weights * (data - mean)) ** 2))
    counted = weights[weights != 0]
    log_weights = of_datum * float(np.sum(np.log(counted**2)))
    return of_datum * counted.size, chi_square, total, log_weights


def _raveled(arrays) -> np.ndarray:
    return np.concatenate([np.ravel(array) for array in arrays])


def _criteria(count: int, fitted: int, chi_square: float, log_weights: float, absolute):
    """AIC and BIC."""
    if absolute:
        deviance = chi_square
    else:
        fitted += 1
        variance = chi_square / count if count else math.nan
        log = math.log(2 * math.pi * variance) if variance > 0 else -math.inf
        log = math.nan if math.isnan(variance) else log
        deviance = count * (log + 1) - log_weights
    return deviance + 2 * fitted, deviance + fitted * math.log(max(count, 1))


def _warnings(made: VarProReport, errors: Errors, deficient: bool) -> list[str]:
    warnings = []
    if made.failure:
        warnings.append(f"The fit failed: it {made.failure}")
    if made.degrees_of_freedom <= 0:
        warnings.append(
            "No degrees of freedom: as many numbers are fitted as there are data, and "
            "their errors cannot be estimated."
        )
    if deficient:
        warnings.append(
            f"W Φ has the rank {made.rank} at the fitted θ, with {made.columns} columns: "
            "the coefficients are those of minimum norm, and others fit as well."
        )
    of_theta = made.theta
    free = of_theta.remark == ""
    if made.degrees_of_freedom > 0 and np.any(
        np.isnan(of_theta.standard_deviation[free])
    ):
        warnings.append(
            "The standard deviations are NaN: the data do not determine all of θ."
        )
    at_bound = [
        name
        for estimates in (made.theta, made.coefficients)
        for name in estimates.name[np.isin(estimates.remark, (_HELD[-1], _HELD[1]))]
    ]
    if at_bound:
        warnings.append(
            f"At a bound: {_listed(at_bound)}. Errors are those with it held there."
        )
    strong = [f"{a} and {b}" for a, b, value in made.correlations if abs(value) > _STRONG]
    if strong:
        warnings.append(f"Correlated by more than {_STRONG}: {_listed(strong)}.")
    close = _parallel_columns(errors)
    if close:
        warnings.append(f"Nearly parallel columns of W Φ: {_listed(close)}.")
    uncertain = [
        name
        for estimates in (made.theta, made.coefficients)
        for name in estimates.name[estimates.relative_error > 1]
    ]
    if uncertain:
        warnings.append(f"Uncertain by more than their value: {_listed(uncertain)}.")
    return warnings


def _parallel_columns(errors: Errors) -> list[str]:
    """Pairs of columns of W Φ with a cosine near one.

    AᴴA is the inverse of (AᴴA)⁻¹, and is taken from that with a diagonal of ones, so that
    the lengths of the columns do not matter.
    """
    told, sets = [], listed(errors.gram_inverse)
    for number, of_set in enumerate(sets):
        found = {}
        for gram_inverse in of_set:
            cosines = _cosines(gram_inverse)
            for i, j in zip(*np.nonzero(np.triu(cosines > _PARALLEL, 1)), strict=True):
                found[i, j] = max(cosines[i, j], found.get((i, j), 0))
        where = "" if len(sets) == 1 else f" in data set {number}"
        told += [
            f"{i} and {j}{where} (cosine {found[i, j]:.6f})" for i, j in sorted(found)
        ]
    return told


def _cosines(gram_inverse: np.ndarray) -> np.ndarray:
    wide = np.complex128 if np.iscomplexobj(gram_inverse) else np.float64
    inverse = gram_inverse.astype(wide)
    if not np.all(np.isfinite(inverse)):
        return np.zeros(inverse.shape)
    inverse = _with_unit_diagonal(inverse)
    rcond = np.finfo(gram_inverse.dtype).eps * len(inverse)
    return np.abs(_with_unit_diagonal(np.linalg.pinv(inverse, rcond, hermitian=True)))


def _with_unit_diagonal(matrix: np.ndarray) -> np.ndarray:
    size = np.sqrt(np.maximum(np.real(np.diagonal(matrix)), 0))
    size = np.where(size > 0, size, 1)
    return matrix / np.outer(size, size)


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {more} more" if more > 0 else shown
