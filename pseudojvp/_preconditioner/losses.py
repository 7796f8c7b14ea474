"""How good a preconditioner P of A is: numbers that training makes smaller."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, PRNGKeyArray, Real

from .._base.checks import check_count
from .._base.structure import Structure
from .._kernel.products import matmul
from .._operator import as_operator


def condition_number(A: Any, P: Any = None) -> Real[Array, ""]:
    """Returns the condition number of P A, λ_max / λ_min.

    This is the condition number of L^H A L with P = L L^H. The number of CG steps grows
    with its square root. It is infinite if A or P is not definite, or if an eigenvalue is
    lost to rounding; NaN if P has no Cholesky factor.

    Cost: dense. It takes A and P as matrices (n products each if they are known only
    through products), a Cholesky factorisation, two products of matrices and all
    eigenvalues: about 15 n³ flops; a gradient costs twice that. Memory: a few n × n
    matrices.

    **Arguments:**

    - `A`: positive semidefinite or negative semidefinite, and tagged so; real or complex;
        anything that [`pseudojvp.linear_solve`][] takes.
    - `P`: a positive definite operator near A^-1, and tagged so. Defaults to `None`, the
        identity.

    **Returns:** a real scalar, at least one up to rounding.

    **Derivatives:** with respect to A and P. If the largest or smallest eigenvalue is
    multiple, no derivative exists, and that of one of its eigenvectors is returned. The
    derivative of an infinite condition number is not finite.

    **Raises:** `ValueError` for operators that are not square, differ in structure, or
    lack these tags.

    **Sources:** Saad, *Iterative Methods for Sparse Linear Systems*, 2nd ed. (2003),
    section 6.11.3, for the steps of CG.

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    diagonal = jnp.diag(jnp.array([1.0, 4.0]))
    A = lx.MatrixLinearOperator(diagonal, lx.positive_semidefinite_tag)
    print(pj.condition_number(A).round(2))  # 4.0
    print(pj.condition_number(A, pj.jacobi(A)).round(2))  # 1.0
    ```
    """
    A, P = _operators(A, P, "condition_number")
    matrix = _hermitian(A)
    if P is not None:
        L = jnp.linalg.cholesky(_hermitian(P))
        matrix = matmul(L.conj().T, matmul(matrix, L))
        matrix = (matrix + matrix.conj().T) / 2
    eigenvalues = jnp.linalg.eigvalsh(matrix)
    smallest, largest = eigenvalues[0], eigenvalues[-1]
    if lx.is_negative_semidefinite(A):
        smallest, largest = -largest, -smallest
    noise = len(eigenvalues) * float(jnp.finfo(eigenvalues.dtype).eps) * largest
    lost = smallest <= noise
    quotient = largest / jnp.where(lost, 1, smallest)
    # A quotient, so that the derivative is no zero either.
    infinite = (1 + smallest**2) / jnp.where(lost, 0.0, 1)
    return jnp.where(lost, infinite, quotient)


def kaporin_number(A: Any, P: Any = None) -> Real[Array, ""]:
    """Returns the logarithm of Kaporin's condition number of P A,

        ln K = n ln(tr(P A) / n) − ln det(P A),

    It is zero if P is a multiple of A^-1. Unlike the ratio of the extreme eigenvalues it
    depends on every eigenvalue, and is smooth. After (ln K + 2 |ln ε|) / ln 2 steps of CG
    the residual, in the norm of P, is at most ε times the first one.

    Cost: dense. It takes A and P as matrices and two Cholesky factorisations, 2 n³ / 3
    flops; a gradient costs about five times that. NaN if A or P is not definite.

    **Arguments, Raises:** as [`pseudojvp.condition_number`][].

    **Returns:** a real scalar, at least zero up to rounding.

    **Derivatives:** with respect to A and P, of every order.

    **Sources:** Kaporin, *New convergence results and preconditioning strategies for the
    conjugate gradient method*, Numer. Linear Algebra Appl. 1 (1994), section 2.

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    diagonal = jnp.diag(jnp.array([1.0, 4.0]))
    A = lx.MatrixLinearOperator(diagonal, lx.positive_semidefinite_tag)
    print(f"{pj.kaporin_number(A):.4f}")  # 0.4463
    ```
    """
    A, P = _operators(A, P, "kaporin_number")
    matrix = _hermitian(A)
    if lx.is_negative_semidefinite(A):
        matrix = -matrix
    size = len(matrix)
    if P is None:
        trace, logdet = jnp.trace(matrix).real, _logdet(matrix)
    else:
        inverse = _hermitian(P)
        trace = jnp.sum((inverse * matrix.conj()).real)
        logdet = _logdet(matrix) + _logdet(inverse)
    return size * jnp.log(trace / size) - logdet


def inverse_residual(
    A: Any, P: Any, key: PRNGKeyArray, num_probes: int = 8
) -> Real[Array, ""]:
    """Returns an unbiased estimate of ‖I − P A‖² in the Frobenius norm, matrix-free:

        the mean of |z − P A z|² over random z with E z z^H = I.

    z has entries ±1. With E = I − P A the variance is at most 2 ‖E^H E‖² / `num_probes`,
    in the Frobenius norm.

    Cost: for each probe a product with A and one with P; a gradient costs three times
    that. A and P need no tags and may have any symmetry. All singular values of E have
    equal weight, so eigenvalues of A near zero, which cause most steps of CG, count
    little.

    **Arguments:**

    - `A`: a square operator, anything that [`pseudojvp.linear_solve`][] takes.
    - `P`: an operator near A^-1, of the same structure.
    - `key`: a key of `jax.random`, a new one for each estimate.
    - `num_probes`: a positive Python integer. Defaults to `8`.

    **Returns:** a real scalar, `≥ 0`.

    **Derivatives:** with respect to A and P, of the estimate; they are unbiased as well.

    **Raises:** `TypeError` or `ValueError` for a `num_probes` that is not a positive
    integer; `ValueError` for operators that are not square or differ in structure.

    **Sources:** Hutchinson, *A stochastic estimator of the trace of the influence matrix
    for Laplacian smoothing splines*, Comm. Statist. Simulation Comput. 19 (1990).

    **Example:**

    ```python
    import jax
    import jax.numpy as jnp
    import pseudojvp as pj

    A = jnp.array([[2.0, 1.0], [1.0, 4.0]])
    exact, none = pj.invert(A), jnp.eye(2)
    print(pj.inverse_residual(A, exact, jax.random.key(0)).round(2))  # 0.0
    print(pj.inverse_residual(A, none, jax.random.key(0)) > 1)  # True
    ```
    """
    check_count(num_probes, "num_probes", "inverse_residual")
    A, P = _operators(A, P, "inverse_residual", definite=False)
    structure = Structure.of(A.in_structure())
    dtype = jax.eval_shape(structure.ravel, A.in_structure()).dtype
    signs = jax.random.rademacher(key, (num_probes, structure.size), jnp.int32)

    def square(z):
        image = P.mv(A.mv(structure.unravel(z)))
        rest = z - structure.ravel(image)
        return jnp.vdot(rest, rest).real

    return jnp.mean(jax.vmap(square)(signs.astype(dtype)))


def _operators(A: Any, P: Any, caller: str, definite: bool = True):
    A = as_operator(A, caller)
    operators = {"A": A}
    if P is not None or not definite:
        operators["P"] = as_operator(P, caller)
    structure = Structure.of(A.in_structure())
    for name, operator in operators.items():
        ends = operator.in_structure(), operator.out_structure()
        ends = tuple(map(Structure.of, ends))
        if ends != (structure, structure):
            raise ValueError(
                f"`{caller}({name}=...)` got an operator that maps "
                f"{ends[0].as_tree()} to {ends[1].as_tree()}. A and P are square, and "
                f"both of the structure of A, {structure.as_tree()}."
            )
        semidefinite = lx.is_positive_semidefinite(operator) or (
            name == "A" and lx.is_negative_semidefinite(operator)
        )
        if definite and not semidefinite:
            raise ValueError(
                f"`{caller}({name}=...)` needs a definite operator: tag it with "
                "`lineax.positive_semidefinite_tag` if it is."
            )
    return A, operators.get("P")


def _hermitian(operator: lx.AbstractLinearOperator) -> Inexact[Array, "n n"]:
    matrix = jnp.asarray(operator.as_matrix())
    return (matrix + matrix.conj().T) / 2


def _logdet(matrix: Inexact[Array, "n n"]) -> Real[Array, ""]:
    return 2 * jnp.sum(jnp.log(jnp.diag(jnp.linalg.cholesky(matrix)).real))
