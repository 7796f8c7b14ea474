"""Structured operators along paths of constant rank, beside dense forms by NumPy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.linalg

import pseudojvp as pj


class Case(NamedTuple):
    """`make` and `dense` take the same arrays, those of `shapes` plus t times others.

    An entry of `shapes` is a shape; "orthonormal" makes columns of them so at t = 0, and
    "low" a product of rank one less than full, at every t.
    """

    name: str
    make: Callable
    dense: Callable
    shapes: tuple[Any, ...]
    well_posed: tuple[bool | None, ...]
    real: tuple[int, ...] = ()  # which arrays are real in the complex case as well


def hermitian(matrix, library=np):
    return (matrix + library.conj(matrix).T) / 2


def gram(matrix):
    return matrix @ matrix.conj().T


def tagged(matrix):
    """The Hermitian part of a matrix, as an operator."""
    tag = pj.hermitian_tag if jnp.iscomplexobj(matrix) else lx.symmetric_tag
    return lx.MatrixLinearOperator(hermitian(matrix, jnp), tag)


def definite(matrix):
    return lx.MatrixLinearOperator(gram(matrix), lx.positive_semidefinite_tag)


def eigh_matrix(values, vectors, complement=0.0):
    projection = vectors @ vectors.conj().T
    rest = np.eye(len(vectors)) - projection
    return (vectors * values) @ vectors.conj().T + complement * rest


def factored(a, b, damping):
    """Martens & Grosse, section 6.3."""
    a, b = gram(a), gram(b)
    pi = np.sqrt(np.trace(a).real / len(a) / (np.trace(b).real / len(b)))
    left = a + pi * np.sqrt(damping) * np.eye(len(a))
    return np.kron(left, b + np.sqrt(damping) / pi * np.eye(len(b)))


def block_diagonal(*blocks):
    parts = [list(block) if block.ndim == 3 else [block] for block in blocks]
    return scipy.linalg.block_diag(*[part for some in parts for part in some])


def shifted(operator, shift):
    return operator + shift * lx.IdentityLinearOperator(operator.in_structure())


SQUARE = (True, None, False)
ANY = (None, False)
CASES = {
    case.name: case
    for case in (
        Case("kronecker", pj.Kronecker, np.kron, ((3, 3), (2, 2)), SQUARE),
        Case(
            "kronecker-definite",
            lambda a, b: pj.Kronecker(definite(a), definite(b)),
            lambda a, b: np.kron(gram(a), gram(b)),
            ((3, 3), (2, 2)),
            SQUARE,
        ),
        Case("kronecker-tall", pj.Kronecker, np.kron, ((4, 3), (3, 2)), ANY),
        Case("kronecker-wide", pj.Kronecker, np.kron, ((3, 4), (2, 2)), ANY),
        Case("kronecker-tall-and-wide", pj.Kronecker, np.kron, ((3, 2), (2, 3)), ANY),
        Case("kronecker-deficient", pj.Kronecker, np.kron, ("low", (2, 3)), (False,)),
        Case(
            "kronecker-of-three",
            pj.Kronecker,
            lambda a, b, c: np.kron(np.kron(a, b), c),
            ((2, 2), (3, 3), (2, 2)),
            SQUARE,
        ),
        Case(
            "kronecker-of-structured",
            lambda a, c: pj.Kronecker(pj.BlockDiagonal(a), pj.Circulant(c)),
            lambda a, c: np.kron(block_diagonal(a), scipy.linalg.circulant(c)),
            ((2, 2, 2), (3,)),
            SQUARE,
        ),
        Case(
            "damped",
            lambda a, b, s: pj.Kronecker(tagged(a), tagged(b)).damped(s),
            lambda a, b, s: np.kron(hermitian(a), hermitian(b)) + s * np.eye(6),
            ((3, 3), (2, 2), ()),
            SQUARE,
            real=(2,),
        ),
        Case(
            "factored-damped",
            lambda a, b, s: pj.Kronecker(definite(a), definite(b)).factored_damped(s),
            factored,
            ((3, 3), (2, 2), ()),
            (True,),
            real=(2,),
        ),
        Case(
            "blocks",
            pj.BlockDiagonal,
            block_diagonal,
            ((2, 2), (2, 2), (3, 3), (2, 2, 2)),
            SQUARE,
        ),
        Case("blocks-tall", pj.BlockDiagonal, block_diagonal, ((3, 3, 2), (2, 1)), ANY),
        Case("blocks-wide", pj.BlockDiagonal, block_diagonal, ((1, 3), (2, 2, 3)), ANY),
        Case("blocks-mixed", pj.BlockDiagonal, block_diagonal, ((2, 3), (3, 2)), ANY),
        Case(
            "blocks-deficient",
            pj.BlockDiagonal,
            block_diagonal,
            ("low", (2, 2)),
            (False,),
        ),
        Case("eigh", pj.Eigh, eigh_matrix, ((4,), "orthonormal"), SQUARE, real=(0,)),
        Case(
            "eigh-shifted",
            lambda values, vectors: shifted(pj.Eigh(values, vectors), 2.5),
            lambda values, vectors: eigh_matrix(values + 2.5, vectors, 2.5),
            ((2,), "low-orthonormal"),
            SQUARE,
            real=(0,),
        ),
        Case(
            "eigh-low", pj.Eigh, eigh_matrix, ((2,), "fixed-orthonormal"), ANY, real=(0,)
        ),
        Case("circulant", pj.Circulant, scipy.linalg.circulant, ((5,),), SQUARE),
        Case("circulant-even", pj.Circulant, scipy.linalg.circulant, ((4,),), SQUARE),
        Case(
            "circulant-deficient",
            lambda c: pj.Circulant(c) @ pj.Circulant(jnp.array([1, -1, 0, 0], c.dtype)),
            lambda c: scipy.linalg.circulant(c) @ scipy.linalg.circulant([1, -1, 0, 0]),
            ((4,),),
            ANY,
        ),
        Case("toeplitz", pj.Toeplitz, scipy.linalg.toeplitz, ((4,), (4,)), SQUARE),
        Case("toeplitz-tall", pj.Toeplitz, scipy.linalg.toeplitz, ((5,), (3,)), ANY),
        Case("toeplitz-wide", pj.Toeplitz, scipy.linalg.toeplitz, ((3,), (5,)), ANY),
    )
}


class Path(NamedTuple):
    """The arrays p + t p' of a case, and what is computed from them."""

    case: Case
    start: tuple[np.ndarray, ...]
    slope: tuple[np.ndarray, ...]
    vector: np.ndarray

    def at(self, t, library=np):
        pairs = zip(self.start, self.slope, strict=True)
        arrays = [
            library.asarray(p) + library.asarray(t, q.dtype) * library.asarray(q)
            for p, q in pairs
        ]
        return [self._low(array) for array in arrays]

    def operator(self, t):
        return self.case.make(*self.at(t, jnp))

    def matrix(self, t):
        return self.case.dense(*self.at(t))

    def _low(self, array):
        """A stacked pair (L, R) stands for L Rᵀ."""
        return array[0, 0] @ array[1, 0].T if array.ndim == 4 else array


def path_of(name, is_complex, seed=0):
    case = CASES[name]
    rng = np.random.default_rng([seed, *map(ord, name)])
    start, slope = [], []
    for index, shape in enumerate(case.shapes):
        complex_entries = is_complex and index not in case.real
        first, second = _arrays(rng, shape, complex_entries)
        start.append(first)
        slope.append(second)
    path = Path(case, tuple(start), tuple(slope), np.zeros(0))
    rows = len(path.matrix(0.0))
    return path._replace(vector=normal(rng, (rows,), is_complex))


def normal(rng, shape, is_complex):
    values = rng.standard_normal(shape)
    return values + 1j * rng.standard_normal(shape) if is_complex else values


def _arrays(rng, shape, is_complex):
    """Entries at t = 0, well conditioned, and their slope."""
    if isinstance(shape, str):
        columns = 2 if shape.startswith(("low", "fixed")) else 4
        if shape == "low":  # (L, R), with a first axis to tell them
            pair = normal(rng, (2, 1, 3, 2), is_complex)
            return pair, 0.3 * normal(rng, pair.shape, is_complex)
        vectors, _ = np.linalg.qr(normal(rng, (4, columns), is_complex))
        still = 0.0 if shape.startswith("fixed") else 0.3
        return vectors, still * normal(rng, vectors.shape, is_complex)
    entries = 0.4 * normal(rng, shape, is_complex)
    if len(shape) >= 2:
        entries = entries + np.eye(*shape[-2:])
    elif shape:
        entries = entries + np.array([2.0] + [0.0] * (shape[0] - 1))
    else:
        entries = np.asarray(0.8 + abs(entries))
    return entries, 0.3 * normal(rng, shape, is_complex)


def pinv_derivatives(matrix, first, second):
    """A†, and its first and second derivative along a path of constant rank.

    Golub & Pereyra's formula, and its derivative by the rule of products.
    """
    star = lambda array: array.conj().T
    p = np.linalg.pinv(matrix, rcond=1e-10)
    left = np.eye(len(matrix)) - matrix @ p
    right = np.eye(matrix.shape[1]) - p @ matrix

    def product_rule(terms):
        """The derivative of a product of pairs (factor, its derivative)."""
        total = 0
        for moved in range(len(terms)):
            factors = [pair[index == moved] for index, pair in enumerate(terms)]
            total = total + np.linalg.multi_dot(factors)
        return total

    dp = (
        -p @ first @ p
        + p @ star(p) @ star(first) @ left
        + right @ star(first) @ star(p) @ p
    )
    d_left = -first @ p - matrix @ dp
    d_right = -dp @ matrix - p @ first
    pair = (p, dp)
    star_pair = (star(p), star(dp))
    moved, moved_star = (first, second), (star(first), star(second))
    ddp = (
        -product_rule([pair, moved, pair])
        + product_rule([pair, star_pair, moved_star, (left, d_left)])
        + product_rule([(right, d_right), moved_star, star_pair, pair])
    )
    return p, dp, ddp
