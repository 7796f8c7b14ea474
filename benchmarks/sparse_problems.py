"""Model problems for sparse solvers: SciPy matrices of any number of unknowns."""

import numpy as np
import scipy.fft
import scipy.sparse
import scipy.spatial


def _line(side: int) -> scipy.sparse.dia_array:
    values = [-np.ones(side - 1), 2 * np.ones(side), -np.ones(side - 1)]
    return scipy.sparse.diags_array(values, offsets=[-1, 0, 1])


def poisson(side: int, dimension: int) -> scipy.sparse.csr_array:
    """-Δ on the `side**dimension` interior points of a cube, times the mesh width²."""
    matrix = _line(side)
    for _ in range(dimension - 1):
        matrix = scipy.sparse.kronsum(matrix, _line(side))
    return scipy.sparse.csr_array(matrix)


def solve_poisson(side: int, dimension: int, vector: np.ndarray) -> np.ndarray:
    """The solution to rounding, by the fast sine transform."""
    eigenvalues = 4 * np.sin(np.pi * np.arange(1, side + 1) / (2 * side + 2)) ** 2
    total = sum(np.meshgrid(*[eigenvalues] * dimension, indexing="ij", sparse=True))
    modes = scipy.fft.dstn(vector.reshape([side] * dimension), type=1)
    return scipy.fft.idstn(modes / total, type=1).ravel()


def convection_diffusion(side: int, peclet: float) -> scipy.sparse.csr_array:
    """-Δu + v·∇u on a square, times the mesh width²; v goes round, up to `peclet`.

    By upwind differences for v·∇u.
    """
    width = 1 / (side + 1)
    x, y = np.meshgrid(*[np.arange(1, side + 1) * width] * 2, indexing="ij")
    winds = 4 * x * (x - 1) * (1 - 2 * y), 4 * y * (1 - y) * (1 - 2 * x)
    identity = scipy.sparse.eye_array(side)
    below = scipy.sparse.eye_array(side, k=-1)
    matrix = scipy.sparse.kronsum(_line(side), _line(side))
    for axis, wind in enumerate(winds):
        speed = peclet * width * wind.ravel()
        for values, step in ((speed, below), (-speed, below.T)):
            difference = identity - step
            pair = (difference, identity) if axis == 0 else (identity, difference)
            along = scipy.sparse.kron(*pair)
            matrix = matrix + scipy.sparse.diags_array(np.maximum(values, 0)) @ along
    return scipy.sparse.csr_array(matrix)


def graph_laplacian(size: int) -> scipy.sparse.csr_array:
    """Of random points in a square, each joined to its six nearest: singular."""
    rng = np.random.default_rng(0)
    points = rng.random((size, 2))
    _, neighbours = scipy.spatial.cKDTree(points).query(points, 7)
    row, col = np.repeat(np.arange(size), 6), neighbours[:, 1:].ravel()
    entries = rng.uniform(0.5, 1.5, row.size), (row, col)
    weights = scipy.sparse.csr_array(entries, shape=(size, size))
    weights = weights.maximum(weights.T)
    return scipy.sparse.csr_array(scipy.sparse.csgraph.laplacian(weights))


def two_materials(side: int, contrast: float) -> scipy.sparse.csr_array:
    """-div(κ ∇) on a square, κ of 1 or `contrast` like the squares of a chessboard."""
    tile = np.arange(side) // 16
    conductivity = np.where((tile[:, None] + tile) % 2 == 0, 1.0, contrast)
    number = np.arange(side**2).reshape(side, side)
    diagonal = np.zeros((side, side))
    matrix = scipy.sparse.csr_array((side**2, side**2))
    for axis in range(2):
        numbers = np.moveaxis(number, axis, 0)
        values = np.moveaxis(conductivity, axis, 0)
        total = np.moveaxis(diagonal, axis, 0)  # a view
        between = 2 / (1 / values[:-1] + 1 / values[1:])
        total[:-1] += between
        total[1:] += between
        total[[0, -1]] += 2 * values[[0, -1]]  # u = 0 half a cell further
        place = numbers[:-1].ravel(), numbers[1:].ravel()
        half = scipy.sparse.csr_array((-between.ravel(), place), shape=matrix.shape)
        matrix = matrix + half + half.T
    return scipy.sparse.csr_array(matrix + scipy.sparse.diags_array(diagonal.ravel()))
