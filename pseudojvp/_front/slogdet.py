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

    As `jnp.linalg.slogdet`, for any operator and solver with factors, and next to solves
    at no second factorisation: `factorised.slogdet()` of [`pseudojvp.factorise`][].

    Where A is not square or not of full rank (`QR()` of a tall or wide A, `SVD()`,
    `PivotedQR()`, a singular `lineax.Diagonal()`), |det A| is the product of the singular
    values that are not zero, the pseudo-determinant, and the sign is 1: for a tall A of
    full rank half of log det AᴴA.

    **Arguments:**

    - `operator`: A; any `lineax.AbstractLinearOperator`, an array of shape
        `(rows, cols)`, or a sparse matrix.
    - `solver`: one with factors: `LU()`, `Cholesky()`, `QR()`, `Triangular()`,
        `Tridiagonal()`, `SparseLU()`, `SparseTriangular()`, `lineax.Diagonal()`,
        `PivotedQR()`, `SVD()` or `Woodbury()`, or an `AutoLinearSolver` that picks one of
        them. Defaults to `AutoLinearSolver(well_posed=True)`, for square A.
    - `throw`: whether an error is raised at run time if the factors are NaN (an entry of
        A is, `Cholesky()` got an indefinite A, or the vectors of an
        [`pseudojvp.Eigh`][] are not orthonormal), and by a derivative where A is
        singular. If `False`, value and derivative are NaN there. Defaults to `True`.

    **Returns:** a named tuple `(sign, logabsdet)` of scalars: `sign` in the dtype of A, a
    complex number of size one for a complex A, and `logabsdet` real; in single precision
    for 16 bits. They are 1 and 0 for an empty A. If an exact zero is met in the factors
    of a square A, they are 0 and −inf, which is no failure. Nor is a determinant that is
    only rounding: `Factorised.result` tells whether A is singular to working precision.

    **Derivatives:** with respect to `operator`, forward and reverse, of every order,

        (log |det A|)′ = Re tr(A† A′),    sign′ = i sign Im tr(A⁻¹ A′),

    for A of deficient rank along paths of constant rank; the sign 1 does not move then.
    By `Triangular()`, `SparseTriangular()`, `Tridiagonal()` and `lineax.Diagonal()` they
    are those of what is read: of the diagonal, or the three diagonals. There the
    derivative of a singular A is infinite or NaN, and never raises. Those of a
    [`pseudojvp.Eigh`][] are by its eigenvalues alone: its vectors stay orthonormal.

    Cost: of the value a factorisation, n³ for the sign by `SVD()` and `PivotedQR()`, of
    which only a determinant needs one (an LU factorisation of the orthogonal factors).
    The gradient takes one application of the factors to as many unit vectors as the short
    side of A is long, however many tangents there are; O(n) for the diagonal ones. Of a
    sparse A only the entries of A⁻ᴴ on its pattern are kept, n solves in chunks of 256.

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
