from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Inexact, Real

from .._base.axes import scan
from .._base.checks import check_count
from .._base.optional import import_late, import_optional
from .._operator import SparseLinearOperator
from .operator import (
    AbstractPreconditioner,
    conj_arrays,
    sparse_entries,
    symmetry_tags,
)
from .padded_rows import padded_operator


# The largest matrix that PyAMG may leave for the dense inverse: 1 MB, and some levels
# less to compile.
_COARSEST = 400


class _Level(eqx.Module):
    """A of one level, with the maps from and to the next."""

    operator: SparseLinearOperator
    inverse_diagonal: Inexact[Array, " n"]
    largest: Real[Array, ""]  # a bound of the eigenvalues of D^-1 A
    restriction: SparseLinearOperator
    prolongation: SparseLinearOperator

    def smoothed(self, vector, steps: int):
        """x = S b and b − A x, for a polynomial S = p(D^-1 A) D^-1, symmetric if A is."""
        first, *later = self._weights(steps)
        length = first[1].astype(vector.dtype)
        change = length * self.inverse_diagonal * vector
        start = jnp.zeros_like(vector), change, vector
        solution, _, residual = self._passes(vector, start, [*later, (0.0, 0.0)])
        return solution, residual

    def corrected(self, vector, solution, steps: int):
        """x + S (b − A x)."""
        start = solution, jnp.zeros_like(solution), vector
        solution, change, _ = self._passes(vector, start, self._weights(steps))
        return solution + change

    def _passes(self, vector, start, weights):
        """Adds the change to x, and takes the next one from b − A x: a product a pass."""

        def advance(carry, weight):
            solution, change, _ = carry
            solution = solution + change
            residual = vector - self.operator.mv(solution)
            momentum, length = weight
            change = momentum * change + length * self.inverse_diagonal * residual
            return (solution, change, residual), None

        momenta, lengths = zip(*weights, strict=True)
        stacked = jnp.stack(momenta), jnp.stack(lengths)
        stacked = jax.tree.map(lambda each: each.astype(vector.dtype), stacked)
        return scan(advance, start, stacked, unroll=2)[0]

    def _weights(self, steps: int):
        """Those of the last change and of D^-1 r in each step of Chebyshev iteration."""
        lower = self.largest / (steps + 1) ** 2
        middle, half = (self.largest + lower) / 2, (self.largest - lower) / 2
        rho = half / middle
        weights = [(jnp.zeros_like(rho), 1 / middle)]
        for _ in range(steps - 1):
            new_rho = 1 / (2 * middle / half - rho)
            weights.append((new_rho * rho, 2 * new_rho / half))
            rho = new_rho
        return weights

    def transpose(self) -> "_Level":
        return _Level(
            self.operator.transpose(),
            self.inverse_diagonal,
            self.largest,
            self.prolongation.transpose(),
            self.restriction.transpose(),
        )


class AMGPreconditioner(AbstractPreconditioner):
    """One V-cycle from zero, the same smoother before and after: symmetric if A is."""

    levels: tuple[_Level, ...]
    coarsest: Inexact[Array, "m m"]  # the pseudoinverse
    steps: int = eqx.field(static=True)

    def apply(self, flat: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        return self._cycle(self.levels, flat)

    def _cycle(self, levels, vector):
        if not levels:
            return self.coarsest @ vector
        level, *rest = levels
        solution, residual = level.smoothed(vector, self.steps)
        correction = self._cycle(rest, level.restriction.mv(residual))
        solution = solution + level.prolongation.mv(correction)
        return level.corrected(vector, solution, self.steps)

    def transpose(self) -> "AMGPreconditioner":
        return AMGPreconditioner(
            self.structure,
            self.tags,
            tuple(level.transpose() for level in self.levels),
            self.coarsest.T,
            self.steps,
        )

    def conj(self) -> "AMGPreconditioner":
        return conj_arrays(self)


def amg(
    operator: Any,
    *,
    method: Literal["smoothed_aggregation", "ruge_stuben"] = "smoothed_aggregation",
    smoothing_steps: int = 2,
    **options: Any,
) -> AMGPreconditioner:
    """Returns one V-cycle of algebraic multigrid for a sparse A, with PyAMG's hierarchy.

    PyAMG (`pip install "pseudojvp[amg]"`) builds the coarser matrices on the host; the
    cycle runs in JAX. It smooths before and after each coarse correction with the same
    Chebyshev polynomial in D^-1 A, D = diag(A), and applies a dense pseudoinverse on the
    coarsest level. The preconditioner is symmetric if A is, and positive definite if A
    is. The polynomial uses the largest row sum of |D^-1 A| as its bound, and no
    eigenvalue of D^-1 A is above it.

    Use it for discretised elliptic equations and graph Laplacians: the number of
    iterations hardly grows with n. An A that is neither symmetric nor Hermitian needs
    `symmetry="nonsymmetric"`, and may gain nothing.

    Cost: PyAMG's set-up, O(n). An application takes `2 * smoothing_steps` products with
    A, about one and a half times that with all levels. Four products are compiled for
    each level, which takes some seconds in all for a program of two solves.

    **Arguments:**

    - `operator`: A, square, with known numbers (no tracers); a
        [`pseudojvp.SparseLinearOperator`][], `BCOO`, `BCSR`, SciPy sparse matrix or
        `(data, row, col, shape)`.
    - `method`: the PyAMG function that builds the hierarchy, `"smoothed_aggregation"` or
        `"ruge_stuben"`. Defaults to the former.
    - `smoothing_steps`: products with A in each smoothing, at least 1. Defaults to `2`.
    - `options`: further arguments of that function: `strength`, `B` (candidates for the
        near null space), `max_levels`, …

    **Returns:** a lineax operator, tagged positive semidefinite or symmetric if A is.

    **Derivatives:** none; a preconditioner is a constant.

    **Raises:** `ImportError` without PyAMG; `TypeError` if `operator` is not sparse;
    `ValueError` if it is not square, its numbers are traced, a diagonal entry is zero, or
    `method` is unknown.

    **Sources:** Vaněk, Mandel & Brezina, *Algebraic multigrid by smoothed aggregation for
    second and fourth order elliptic problems*, Computing 56 (1996); Ruge & Stüben,
    *Algebraic multigrid*, in McCormick (ed.), *Multigrid Methods*, SIAM (1987); Adams,
    Brezina, Hu & Tuminaro, *Parallel multigrid smoothing: polynomial versus
    Gauss–Seidel*, J. Comput. Phys. 188 (2003); Bell, Olson & Schroder, *PyAMG:
    algebraic multigrid solvers in Python*, J. Open Source Softw. 7 (2022).

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj
    import scipy.sparse

    grid = scipy.sparse.diags_array([-1.0, 2, -1], offsets=[-1, 0, 1], shape=(200, 200))
    A = pj.SparseLinearOperator(grid, lx.positive_semidefinite_tag)
    solver = pj.CG(rtol=1e-4, preconditioner=pj.amg(A))
    print(pj.linear_solve(A, jnp.ones(200), solver).stats["num_steps"] < 20)  # True
    ```
    """
    check_count(smoothing_steps, "smoothing_steps", "amg")
    if method not in ("smoothed_aggregation", "ruge_stuben"):
        raise ValueError(
            f"`amg(method=...)` got {method!r}. Pass 'smoothed_aggregation' or "
            "'ruge_stuben'."
        )
    pyamg = import_optional("pyamg", "amg()", "amg")
    operator, row, col, structure = sparse_entries(operator, "amg")
    if isinstance(operator.data, jax.core.Tracer):
        raise ValueError(
            "`amg(operator=...)` got traced numbers. PyAMG builds its hierarchy on the "
            "host: call `amg` outside of `jax.jit`, `jax.grad` and `jax.vmap`, on "
            "numbers near those of A, and pass what it returns in."
        )
    matrix = _csr(operator, row, col, structure.size)
    build = getattr(pyamg, f"{method}_solver")
    hierarchy = _with_fixed_seed(build, matrix, {"max_coarse": _COARSEST, **options})
    dtype = operator.data.dtype
    *finer, coarsest = hierarchy.levels
    return AMGPreconditioner(
        structure,
        symmetry_tags(operator),
        tuple(_level(level, dtype) for level in finer),
        jnp.asarray(_pinv(coarsest.A.toarray()), dtype),
        smoothing_steps,
    )


def _csr(operator: SparseLinearOperator, row, col, size: int):
    """A SciPy matrix; PyAMG does not look at what it is given, so this does."""
    sparse = import_late("scipy.sparse")
    data = np.asarray(operator.data)
    data = data.astype(np.result_type(data.dtype, np.float64))
    kept = row < size
    entries = data[kept], (row[kept], col[kept])
    matrix = sparse.csr_array(entries, shape=(size, size))
    if not np.all(np.isfinite(matrix.data)):
        raise ValueError("`amg(operator=...)` got entries that are not finite.")
    diagonal = matrix.diagonal()
    if not np.all(diagonal):
        raise ValueError(
            "`amg(operator=...)` got a zero on the diagonal, by which its smoother "
            "divides. Use `incomplete_lu`."
        )
    if lx.is_positive_semidefinite(operator) and not np.all(diagonal.real > 0):
        raise ValueError(
            "`amg(operator=...)` got a diagonal that is not positive, of an operator "
            "that is tagged positive semidefinite. Drop the tag."
        )
    return matrix


def _with_fixed_seed(build: Callable, matrix, options: dict[str, Any]):
    """PyAMG starts its power iterations from NumPy's global generator."""
    before = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(0)  # noqa: NPY002
        return build(matrix, **options)
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _pinv(matrix: np.ndarray) -> np.ndarray:
    """A† where A may be singular up to rounding: a Laplacian without a boundary."""
    return np.linalg.pinv(matrix, rcond=len(matrix) * np.finfo(float).eps)


def _level(level, dtype) -> _Level:
    matrix = level.A.tocsr()
    diagonal = matrix.diagonal()
    diagonal = np.where(diagonal == 0, 1, diagonal)
    # Gershgorin's bound of the eigenvalues of D^-1 A.
    largest = np.max(abs(matrix).sum(axis=1) / np.abs(diagonal))
    return _Level(
        padded_operator(matrix, dtype),
        jnp.asarray(1 / diagonal, dtype),
        jnp.asarray(largest, jnp.finfo(dtype).dtype),
        padded_operator(level.R.tocsr(), dtype),
        padded_operator(level.P.tocsr(), dtype),
    )
