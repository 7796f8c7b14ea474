import lineax as lx

from .._base.checks import check_solver
from .._operator import as_operator, Matrix
from .._solver import AutoLinearSolver, Slogdet
from .factorise import factorise


def slogdet(
    operator: lx.AbstractLinearOperator | Matrix,
    solver: lx.AbstractLinearSolver = AutoLinearSolver(well_posed=True),
    *,
    throw: bool = True,
) -> Slogdet:
    """Returns the sign of det A and log |det A|, from the factors of a solve.

        sign, logabsdet = pj.slogdet(A)        # det A = sign exp(logabsdet)

    Like `jnp.linalg.slogdet`, for any operator and any solver with factors. To share the
    factorisation with solves, use `factorised.slogdet()` of [`pseudojvp.factorise`][].

    If A is not square or not of full rank (`QR()` of a tall or wide A, `SVD()`,
    `PivotedQR()`, a singular `lineax.Diagonal()`), |det A| is the pseudo-determinant, the
    product of the nonzero singular values, and the sign is 1. For a tall A of full rank,
    logabsdet is half of log det AᴴA.

    **Arguments:**

    - `operator`: A; any `lineax.AbstractLinearOperator`, an array of shape
        `(rows, cols)`, or a sparse matrix.
    - `solver`: a solver with factors: `LU()`, `Cholesky()`, `QR()`, `Triangular()`,
        `Tridiagonal()`, `SparseLU()`, `SparseTriangular()`, `lineax.Diagonal()`,
        `PivotedQR()`, `SVD()` or `Woodbury()`, or an `AutoLinearSolver` that picks one of
        them. Defaults to `AutoLinearSolver(well_posed=True)`, for square A.
    - `throw`: whether an error is raised at run time if the factors are NaN (A has a NaN,
        `Cholesky()` got an indefinite A, or the vectors of an [`pseudojvp.Eigh`][] are
        not orthonormal), and by a derivative if A is singular. If `False`, value and
        derivative are NaN there. Defaults to `True`.

    **Returns:** a named tuple `(sign, logabsdet)` of scalars. `sign` has the dtype of A,
    and is a complex number of modulus one for a complex A; `logabsdet` is real. Both are
    in single precision if A has 16 bits. An empty A gives 1 and 0. An exact zero in the
    factors of a square A gives 0 and −inf, which is not a failure. Neither is a
    determinant that consists of rounding only: `Factorised.result` reports whether A is
    singular to working precision.

    **Derivatives:** with respect to `operator`, forward and reverse, of every order,

        (log |det A|)′ = Re tr(A† A′),    sign′ = i sign Im tr(A⁻¹ A′),

    along paths of constant rank for A of deficient rank, whose sign 1 is constant. With
    `Triangular()`, `SparseTriangular()`, `Tridiagonal()` and `lineax.Diagonal()` they are
    derivatives with respect to the entries that are read: the diagonal, or the three
    diagonals. There the derivative at a singular A is infinite or NaN, and never raises.
    An [`pseudojvp.Eigh`][] is differentiated through its eigenvalues alone: its vectors
    are taken to stay orthonormal.

    Cost of the value: one factorisation. `SVD()` and `PivotedQR()` need n³ more for the
    sign (an LU factorisation of the orthogonal factors). Cost of the gradient: one
    application of the factors to as many unit vectors as the short side of A is long,
    however many tangents there are; O(n) for the four solvers above that read only
    diagonals. For a sparse A only the entries of A⁻ᴴ on its pattern are kept; they take n
    solves, in chunks of 256.

    **Raises:** `TypeError` at trace time for a solver without factors (`CG()`,
    `Neumann()`, …), and as [`pseudojvp.factorise`][]; a run-time error as `throw` says.

    **Sources:** Magnus & Neudecker, *Matrix Differential Calculus*, 3rd ed. (2019),
    section 8.3; for Hermitian A of deficient rank Holbrook, *Differentiating the pseudo
    determinant*, Linear Algebra Appl. 548 (2018).

    **Example:**

    ```python
    import jax
    import jax.numpy as jnp
    import pseudojvp as pj

    A = jnp.array([[2.0, 1.0], [0.0, 4.0]])
    sign, logabsdet = pj.slogdet(A)
    print(sign, f"{logabsdet:.4f}")  # 1.0 2.0794
    gradient = jax.grad(lambda A: pj.slogdet(A).logabsdet)(A)  # A⁻ᵀ
    print(gradient.tolist())  # [[0.5, 0.0], [-0.125, 0.25]]
    ```
    """
    operator = as_operator(operator, "slogdet")
    check_solver(solver, "slogdet")
    return factorise(operator, solver, throw=throw).slogdet()
