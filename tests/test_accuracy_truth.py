"""The truth of `test_accuracy.py` is right, and so is the sensitivity it assumes."""

import mpmath as mp
import numpy as np
import pytest
from accuracy_truth import (
    DIGITS,
    exact,
    from_mp,
    make_path,
    norm,
    Path,
    to_mp,
    true_derivatives,
    WORKING_DIGITS,
)


KINDS = [
    ("tall", "float64"),
    ("tall-residual", "complex128"),
    ("wide", "complex128"),
    ("square", "float64"),
    ("definite", "complex128"),
    ("upper-triangular", "float64"),
    ("tridiagonal", "float64"),
    ("diagonal", "float64"),
    ("tall-deficient", "complex128"),
    ("wide-deficient", "float64"),
]
FULL_RANK = [pair for pair in KINDS if "deficient" not in pair[0]]


def solution_by_svd(path: Path, t):
    """A(t)† b(t) by mpmath's singular value decomposition, cut off at the rank."""
    powers = np.array([mp.mpf(1), t, t * t], dtype=object)
    matrix = np.tensordot(powers, exact(path.matrix), 1)
    vector = np.tensordot(powers, exact(path.vector), 1)
    u, values, vh = map(from_mp, mp.svd_c(to_mp(matrix)))
    rank = path.left.shape[-1]
    coefficients = (u.conj().T @ vector)[:rank] / values[:rank, 0]
    return vh[:rank].conj().T @ coefficients


@pytest.mark.parametrize("condition", [1.0, 1e12])
@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_derivatives_are_the_central_differences_of_the_pseudoinverse(
    kind, dtype, condition
):
    path = make_path(kind, condition, dtype, seed=0)
    step = mp.mpf("1e-40")  # times κ it is small; its square is a millionth of 1e-70
    with mp.workdps(WORKING_DIGITS):
        before, at, after = (solution_by_svd(path, t) for t in (-step, mp.mpf(0), step))
        differences = [
            at,
            (after - before) / (2 * step),
            (after - 2 * at + before) / step**2,
        ]
        got = true_derivatives(path).derivatives
        for value, difference in zip(got, differences, strict=True):
            assert norm(value - difference) < mp.mpf("1e-20") * norm(difference)


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_fifty_digits_are_right(kind, dtype):
    path = make_path(kind, 1e18, dtype, seed=0)
    got = true_derivatives(path).derivatives
    with mp.workdps(2 * WORKING_DIGITS):
        want = true_derivatives(path, 2 * WORKING_DIGITS).derivatives
        for value, true in zip(got, want, strict=True):
            assert norm(value - true) < mp.mpf(10) ** -DIGITS * norm(true)


@pytest.mark.parametrize("kind", ["tall-deficient", "wide-deficient"])
@pytest.mark.parametrize(
    ("dtype", "condition"), [("float32", 1e4), ("float64", 1e12), ("complex128", 1e12)]
)
def test_a_deficient_path_is_of_its_rank_exactly(kind, dtype, condition):
    for seed in range(3):
        path = make_path(kind, condition, dtype, seed)
        left, right, matrix = map(exact, (path.left, path.right, path.matrix))
        for k in range(3):
            product = sum(left[i] @ right[k - i] for i in range(k + 1))
            assert np.all(product == matrix[k])
        assert np.all(left[2] == 0)
        assert np.all(right[2] == 0)


def perturbed(path: Path, kind: str, size: float, seed: int) -> Path:
    """Every coefficient moved by `size` times its norm, within the structure of A."""
    rng = np.random.default_rng(seed)

    def moved(coefficients):
        noise = rng.standard_normal(coefficients.shape)
        if np.iscomplexobj(coefficients):
            noise = noise + 1j * rng.standard_normal(coefficients.shape)
        if kind == "definite" and noise.ndim == 3:
            noise = noise + noise.conj().swapaxes(1, 2)
        noise = noise * (coefficients[1] != 0)
        steps = [
            size * np.linalg.norm(c) / np.linalg.norm(n) * n
            for c, n in zip(coefficients, noise, strict=True)
        ]
        with mp.workdps(WORKING_DIGITS):
            return exact(coefficients) + exact(np.stack(steps))

    left, right = (
        factor if np.all(factor[1] == 0) else moved(factor)  # I, or A
        for factor in (path.left, path.right)
    )
    return Path(left, right, moved(path.vector))


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e12])
@pytest.mark.parametrize(("kind", "dtype"), FULL_RANK)
def test_a_relative_perturbation_grows_by_the_amplification(kind, dtype, condition):
    path = make_path(kind, condition, dtype, seed=0)
    true = true_derivatives(path)
    size = 1e-30
    growth = []
    for seed in range(5):
        moved = true_derivatives(perturbed(path, kind, size, seed))
        pairs = zip(true.derivatives, moved.derivatives, strict=True)
        with mp.workdps(WORKING_DIGITS):
            growth.append([float(norm(b - a) / norm(a) / size) for a, b in pairs])
    ratio = np.max(growth, axis=0) / true.amplification
    assert np.all(ratio < 20)
    assert np.all(ratio > 1e-3)
