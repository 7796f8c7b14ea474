"""Kronecker products of operators."""

import functools as ft
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact

from .._base.structure import Structure
from .._base.tree import one_or_nan
from .adjoint import hermitian_tag
from .damped_kronecker import DampedKronecker, real_scalar
from .matrix import matrix_of
from .parts import along_each_axis, as_parts, multiple, same, shifted
from .structured import (
    AbstractStructured,
    check_operator,
    completed,
    dtype_of,
    flat_mv,
    identity_multiple,
    same_spaces,
    scalar_for,
    Tags,
    tags_of,
    transposed,
)


class Kronecker(AbstractStructured):
    """The Kronecker product A ⊗ B ⊗ … of operators, like `jnp.kron` of their matrices.

    It acts on flat vectors, whose size is the product of the sizes: (A ⊗ B) vec(X) =
    vec(A X Bᵀ), where vec reads X row by row (`X.reshape(-1)`). Factors may have any
    shape. The pseudoinverse is that of the factors, (A ⊗ B)† = A† ⊗ B†, so
    [`pseudojvp.AutoLinearSolver`][] factorises each factor alone. For factors of size n
    and m this takes n³ + m³ flops, and nm (n + m) a solve, instead of (nm)³ and (nm)².

        K = pj.Kronecker(A, B)
        x = pj.linear_solve(K, b).value

    **Arguments:**

    - `operators`: the factors, at least one: each a `lineax.AbstractLinearOperator`, an
        array of shape `(rows, cols)` or a sparse matrix. Arrays are promoted to one
        common dtype; operators must have it already. If an operator acts on pytrees, its
        vectors are flattened leaf by leaf.

    These are again a `Kronecker`: its transpose and conjugate; `c * K` (c multiplies the
    first factor); `K @ L` if the factors match one by one; `K + L` if all factors but one
    are the same arrays. For Hermitian (tagged) factors `K + λ I` is `K.damped(λ)`. A tag
    holds if it holds for all factors; definiteness follows from the product of their
    signs. For square factors the trace is the product of their traces, and the diagonal
    the Kronecker product of their diagonals.

    Cost of K v: for each factor, a product with every vector along its axis.

    **Derivatives:** with respect to the factors and all arrays in them, of every order.
    The tangent of a product takes one product with each factor.

    **Raises:** `TypeError` or `ValueError` if there is no factor, a factor is not an
    operator, or operators differ in dtype.

    **Sources:** Golub & Van Loan, *Matrix Computations*, 4th ed. (2013), section 12.3;
    Langville & Stewart, J. Comput. Appl. Math. 167 (2004), for pseudoinverses.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A, B = jnp.array([[2.0, 0.0], [0.0, 4.0]]), jnp.array([[1.0, 1.0], [0.0, 1.0]])
    K = pj.Kronecker(A, B)
    x = pj.linear_solve(K, K.mv(jnp.array([1.0, 2.0, 3.0, 4.0]))).value
    print(x.round(2))  # [1. 2. 3. 4.]
    ```
    """

    operators: tuple[lx.AbstractLinearOperator, ...]

    def __init__(self, *operators: Any):
        parts = as_parts(operators, "Kronecker")
        for part in parts:
            if not isinstance(part, lx.AbstractLinearOperator):
                raise ValueError(
                    f"`Kronecker` got an array of shape {part.shape}. A factor has shape "
                    "(rows, cols); for a batch of products use `jax.vmap`."
                )
        self.operators = tuple(parts)

    @property
    def tags(self) -> Tags:
        factors = [tags_of(operator) for operator in self.operators]
        if any(op.in_size() != op.out_size() for op in self.operators):
            return frozenset()
        signs = {lx.positive_semidefinite_tag, lx.negative_semidefinite_tag}
        kept = ft.reduce(frozenset.intersection, factors) - signs - {lx.tridiagonal_tag}
        if all(tags & signs for tags in factors):
            flips = sum(lx.positive_semidefinite_tag not in tags for tags in factors)
            name = "positive" if flips % 2 == 0 else "negative"
            kept |= {getattr(lx, f"{name}_semidefinite_tag")}
        return completed(kept, dtype_of(self.operators[0]))

    def _mv(self, vector: Inexact[Array, " cols"]) -> Inexact[Array, " rows"]:
        products = [jax.vmap(ft.partial(flat_mv, op)) for op in self.operators]
        sizes = [(op.in_size(), op.out_size()) for op in self.operators]
        return along_each_axis(products, sizes, vector)

    def as_matrix(self) -> Inexact[Array, "rows cols"]:
        return ft.reduce(jnp.kron, map(matrix_of, self.operators))

    def transpose(self) -> "Kronecker":
        return self._mapped(transposed)

    def conj(self) -> "Kronecker":
        return self._mapped(lx.conj)

    def linearise(self) -> "Kronecker":
        return self._mapped(lx.linearise)

    def materialise(self) -> "Kronecker":
        return self._mapped(lx.materialise)

    def diagonal(self) -> Inexact[Array, " k"]:
        if all(op.in_size() == op.out_size() for op in self.operators):
            return ft.reduce(jnp.kron, map(lx.diagonal, self.operators))
        return jnp.diagonal(self.as_matrix())

    def trace(self) -> Inexact[Array, ""]:
        """Returns the trace of square factors: the product of their traces."""
        self.check_square("trace")
        if all(op.in_size() == op.out_size() for op in self.operators):
            traces = [jnp.sum(lx.diagonal(operator)) for operator in self.operators]
            return ft.reduce(jnp.multiply, traces)
        return jnp.sum(self.diagonal())

    def damped(self, damping: Any) -> "DampedKronecker":
        """Returns A ⊗ B ⊗ … + λ I, exactly, for Hermitian factors.

        A solve uses the eigenvalues of the factors: with A = Q diag(d) Qᴴ and B = P
        diag(e) Pᴴ the sum has the eigenvalues d_i e_j + λ and the eigenvectors Q ⊗ P.
        Cost: one `eigh` of each factor, then two products with Q and with P a solve.

        **Arguments:**

        - `damping`: λ, a real scalar in the units of the product.

        **Returns:** an operator on the same space. Adding `λ I` or taking a real multiple
        gives such an operator again.

        **Derivatives:** with respect to the factors and λ, of every order, even if
        eigenvalues coincide: the eigenvectors themselves are never differentiated.

        **Raises:** `ValueError` if a factor is not known to be Hermitian, or `damping`
        is no scalar; `TypeError` if it is complex.

        **Sources:** Van Loan, *The ubiquitous Kronecker product*, J. Comput. Appl. Math.
        123 (2000), section 2.
        """
        return DampedKronecker(self, real_scalar(damping, self, "damped(damping=...)"))

    def factored_damped(self, damping: Any, pi: Any = None) -> "Kronecker":
        """Returns (A + π√λ I) ⊗ (B + √λ/π I): a Kronecker product near A ⊗ B + λ I.

        π² is the mean diagonal entry of A over that of B; this minimises the bound on the
        difference in the trace norm. For k factors, factor i gets λ^(1/k) π_i, where π_i
        is its mean diagonal entry over the geometric mean of all. The factors may be of
        any square kind, Hermitian or not; those known to be positive semidefinite stay
        so.

        **Arguments:**

        - `damping`: λ ≥ 0, a real scalar in the units of the product. A negative λ makes
            the operator NaN.
        - `pi`: π for two factors, a positive real scalar; otherwise the operator is NaN.
            For more factors, pass damped factors instead. Defaults to `None`, as above; 1
            if a mean is not positive.

        **Derivatives:** with respect to the factors and λ, through π as well.

        **Raises:** `ValueError` if a factor is not square, `damping` or `pi` is not a
        scalar, or `pi` is given and there are not two factors; `TypeError` if they are
        complex.

        **Sources:** Martens & Grosse, *Optimizing neural networks with Kronecker-factored
        approximate curvature*, ICML (2015), section 6.3.
        """
        damping = real_scalar(damping, self, "factored_damped(damping=...)")
        damping = damping * one_or_nan(damping >= 0).astype(damping.dtype)
        count = len(self.operators)
        for operator in self.operators:
            if operator.in_size() != operator.out_size():
                raise ValueError(
                    "`Kronecker.factored_damped` got a factor of shape "
                    f"({operator.out_size()}, {operator.in_size()}). Each has to be "
                    "square."
                )
        if pi is None:
            means = [jnp.mean(lx.diagonal(op).real) for op in self.operators]
            stacked = jnp.stack(means)
            stacked = jnp.where(jnp.all(stacked > 0), stacked, 1)
            balance = list(stacked / jnp.exp(jnp.mean(jnp.log(stacked))))
        elif count == 2:
            pi = real_scalar(pi, self, "factored_damped(pi=...)")
            pi = pi * one_or_nan(pi > 0).astype(pi.dtype)
            balance = [pi, 1 / pi]
        else:
            raise ValueError(
                f"`Kronecker.factored_damped(pi=...)` is for two factors, and got {count}"
                ". Leave it out, or add to each factor what you want."
            )
        root = damping if count == 1 else damping ** (1 / count)
        signs = {lx.symmetric_tag, hermitian_tag, lx.positive_semidefinite_tag}
        moved = []
        for operator, part in zip(self.operators, balance, strict=True):
            tags = tags_of(operator) & signs
            shift = (root * part).astype(dtype_of(operator))
            moved.append(shifted(operator, shift, tags))
        return Kronecker(*moved)

    def __mul__(self, other: Any) -> "Kronecker":
        first, *others = self.operators
        scalar = scalar_for(other, dtype_of(first), "Kronecker")
        return Kronecker(multiple(first, scalar, other), *others)

    def __matmul__(self, other: Any) -> lx.AbstractLinearOperator:
        check_operator(other)
        if isinstance(other, Kronecker) and len(self.operators) == len(other.operators):
            pairs = list(zip(self.operators, other.operators, strict=True))
            if all(
                Structure.of(left.in_structure()) == Structure.of(right.out_structure())
                for left, right in pairs
            ):
                return Kronecker(*(left @ right for left, right in pairs))
        return lx.ComposedLinearOperator(self, other)

    def __add__(self, other: Any) -> lx.AbstractLinearOperator:
        check_operator(other)
        if isinstance(other, Kronecker) and len(self.operators) == len(other.operators):
            pairs = list(zip(self.operators, other.operators, strict=True))
            different = [i for i, pair in enumerate(pairs) if not same(*pair)]
            if not different:
                return self * 2
            if len(different) == 1 and same_spaces(*pairs[different[0]]):
                factors = list(self.operators)
                factors[different[0]] += other.operators[different[0]]
                return Kronecker(*factors)
        shift = identity_multiple(other)
        known = shift is not None and not jnp.iscomplexobj(shift)
        if known and same_spaces(self, other) and hermitian_tag in self.tags:
            return self.damped(shift)
        return lx.AddLinearOperator(self, other)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        size = math.prod(operator.in_size() for operator in self.operators)
        return jax.ShapeDtypeStruct((size,), dtype_of(self.operators[0]))

    def out_structure(self) -> jax.ShapeDtypeStruct:
        size = math.prod(operator.out_size() for operator in self.operators)
        return jax.ShapeDtypeStruct((size,), dtype_of(self.operators[0]))

    def _mapped(self, function: Callable) -> "Kronecker":
        return Kronecker(*map(function, self.operators))
