from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Inexact, PRNGKeyArray, Real

from .._base.checks import check_count
from .._operator import SparseLinearOperator
from .._operator.sparse import untagged
from .factorised_inverse import factorised_inverse
from .jacobi import inverse_entries


class PreconditionerNetwork(eqx.Module):
    """A small network that computes a preconditioner of a sparse matrix: `network(A)`.

        P = S (G Gᵀ + ε I) S,    S = diag(|a_ii|)^-½,    g_ij = c δ_ij + d ã_ij + f_ij

    G has the pattern of A, ã are the off-diagonal entries of S A S, and f is the output
    of a network on the stored entries. In each of `depth` rounds, each entry sends a
    message along its row: a perceptron of its value and of what its row and column have
    gathered so far. Each row adds up its messages. All entries share the same weights, so
    a network trained on small systems also works for large systems of the same kind.

    P is positive definite whatever the weights, and A and −A have the same P. Initially f
    is zero, and P is a polynomial of second degree in S A S, the same for every matrix.
    Train with [`pseudojvp.kaporin_number`][], [`pseudojvp.inverse_residual`][] or the
    residual of a few steps of [`pseudojvp.LearnedCG`][]. The page *Learned solvers* shows
    how, with Optax.

    Cost of `network(A)`: `2 depth + 1` perceptrons for each stored entry, about 8 depth
    width² flops. An application takes two products with G.

    **Fields:** the arrays are the weights, in the default floating dtype. They are cast
    to the dtype of A.

    **Arguments:**

    - `width`: the width of every hidden layer, positive. Defaults to `12`.
    - `depth`: the number of rounds of messages, `≥ 0`. A row gathers from entries up to
        `depth` steps away. Defaults to `2`.
    - `key`, by name: a key of `jax.random` for the initial weights.

    **`network(A)`** takes a real, square `SparseLinearOperator`, BCOO, BCSR or SciPy
    sparse matrix, and returns what [`pseudojvp.factorised_inverse`][] returns. It works
    under `jax.jit`, under `jax.vmap` and with traced indices, and is differentiable with
    respect to weights and entries.

    **Raises:** `TypeError` for a matrix that is not sparse, or sizes that are not
    integers; `ValueError` for a matrix that is complex or not square, and for sizes out
    of range.

    **Sources:** Yang et al., *Learning sparse approximate inverse preconditioners for
    conjugate gradient solvers on GPUs*, NeurIPS (2025).

    **Example:**

    ```python
    import jax
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj
    import scipy.sparse

    grid = scipy.sparse.diags_array([-1.0, 2, -1], offsets=[-1, 0, 1], shape=(20, 20))
    A = pj.SparseLinearOperator(grid, lx.positive_semidefinite_tag)
    network = pj.PreconditionerNetwork(width=4, depth=1, key=jax.random.key(0))
    print(pj.condition_number(A, network(A)) < pj.condition_number(A))  # True
    ```
    """

    embed: eqx.nn.MLP
    messages: list[eqx.nn.MLP]
    updates: list[eqx.nn.MLP]
    readout: eqx.nn.MLP
    coefficients: Real[Array, "2"]  # c and d
    log_epsilon: Real[Array, ""]

    def __init__(self, width: int = 12, depth: int = 2, *, key: PRNGKeyArray):
        check_count(width, "width", "PreconditionerNetwork")
        check_count(depth, "depth", "PreconditionerNetwork", least=0)
        first, last, *rest = jax.random.split(key, 2 * depth + 2)

        def perceptron(inputs: int, outputs: int, key) -> eqx.nn.MLP:
            return eqx.nn.MLP(inputs, outputs, width, 1, jnp.tanh, key=key)

        self.embed = perceptron(2, width, first)
        self.messages = [perceptron(2 * width + 2, width, k) for k in rest[:depth]]
        self.updates = [perceptron(2 * width, width, k) for k in rest[depth:]]
        readout = perceptron(2 * width + 2, 1, last)
        final = lambda mlp: (mlp.layers[-1].weight, mlp.layers[-1].bias)
        self.readout = eqx.tree_at(final, readout, replace_fn=jnp.zeros_like)
        # Near the best for a Laplacian whose S A S has eigenvalues from 0 to 2.
        self.coefficients = jnp.array([0.5, -0.7])
        self.log_epsilon = jnp.log(jnp.array(0.2))

    def __call__(self, A: Any) -> lx.AbstractLinearOperator:
        operator = _sparse(A)
        data = operator.data
        network = jtu.tree_map(
            lambda leaf: leaf.astype(data.dtype) if eqx.is_inexact_array(leaf) else leaf,
            self,
        )
        diagonal = lx.diagonal(operator)
        scale = jnp.sqrt(inverse_entries(diagonal, definite=True))
        entries = network._entries(operator, scale, jnp.where(diagonal < 0, -1, 1))
        G = SparseLinearOperator((entries, operator.sparsity))
        return factorised_inverse(G, jnp.exp(network.log_epsilon) * scale**2)

    def _entries(self, operator, scale, signs) -> Inexact[Array, " nse"]:
        """S G, of A with S = diag(`scale`)."""
        row, col = operator.sparsity.row, operator.sparsity.col
        entries = operator.data * (signs * scale)[row] * scale[col]
        on_diagonal = (row == col).astype(entries.dtype)
        off_diagonal = entries * (1 - on_diagonal)

        def gathered(values):
            zeros = jnp.zeros((len(scale), *values.shape[1:]), values.dtype)
            return zeros.at[row].add(values, mode="drop")

        edges = jnp.stack([off_diagonal, on_diagonal], axis=1)
        nodes = jnp.stack([gathered(off_diagonal), gathered(off_diagonal**2)], axis=1)
        nodes = jax.vmap(self.embed)(nodes)

        def along(nodes):  # what an entry sees
            return jnp.concatenate([edges, nodes[row], nodes[col]], axis=1)

        for message, update in zip(self.messages, self.updates, strict=True):
            total = gathered(jax.vmap(message)(along(nodes)))
            nodes = nodes + jax.vmap(update)(jnp.concatenate([nodes, total], axis=1))
        learned = jax.vmap(self.readout)(along(nodes))[:, 0]
        c, d = self.coefficients
        return scale[row] * (c * on_diagonal + d * off_diagonal + learned)


def _sparse(A: Any) -> SparseLinearOperator:
    operator = untagged(A) if isinstance(A, lx.AbstractLinearOperator) else A
    if not isinstance(operator, SparseLinearOperator):
        if isinstance(operator, lx.AbstractLinearOperator) or eqx.is_array(operator):
            raise TypeError(
                f"`PreconditionerNetwork()` got a {type(operator).__name__}. Pass a "
                "`SparseLinearOperator`, a BCOO, a BCSR or a SciPy sparse matrix: it "
                "works on the stored entries of A."
            )
        operator = SparseLinearOperator(operator)
    rows, cols = operator.sparsity.shape
    if rows != cols or jnp.iscomplexobj(operator.data):
        raise ValueError(
            f"`PreconditionerNetwork()` got a matrix of shape {(rows, cols)} and dtype "
            f"{operator.data.dtype}. Pass a square and real one."
        )
    return operator
