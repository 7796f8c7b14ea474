"""What `solve_entries` is for: PageRank of a node, the potential of a node."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg

import pseudojvp as pj


def test_personalised_pagerank_of_a_node_among_clustered_pages():
    """π = (1 − α) e_s + α Pᵀπ: dominant by columns, with a b of one entry."""
    rng, clusters, size, alpha = np.random.default_rng(0), 300, 20, 0.85
    nodes = np.arange(clusters * size)
    row = np.repeat(nodes, 5)
    col = row // size * size + rng.integers(0, size, row.size)
    far = rng.random(row.size) < 0.002
    col[far] = rng.integers(0, nodes.size, far.sum())
    links = scipy.sparse.csr_array((np.ones(row.size), (row, col)))
    P = scipy.sparse.diags_array(1 / links.sum(axis=1)) @ links
    A = (scipy.sparse.eye_array(nodes.size) - alpha * P.T).tocsr()
    b = np.zeros(nodes.size)
    b[45] = 1 - alpha
    want = scipy.sparse.linalg.spsolve(A.tocsc(), b)[[45, 47]]
    rank = pj.solve_entries(A, b, [45, 47], rtol=1e-3, atol=0.0)
    assert not rank.whole.any()
    assert (rank.rows_read < nodes.size // 3).all()
    assert np.all(np.abs(rank.value - want) <= rank.bound)
    assert np.all(np.asarray(rank.bound) <= 1e-3 * np.asarray(rank.value))


def test_potential_of_a_node_of_a_grounded_network_and_its_sensitivities():
    """A = Laplacian of conductances + a leak at each node; currents of ±1 flow in."""
    rng, side = np.random.default_rng(1), 60
    at = np.arange(side**2).reshape(side, side)
    ends = [(at[:, 1:], at[:, :-1]), (at[1:], at[:-1])]
    one = np.concatenate([first.ravel() for first, _ in ends])
    other = np.concatenate([second.ravel() for _, second in ends])
    conductances, leak = rng.uniform(0.5, 2.0, one.size), 1.0
    nodes = np.arange(side**2)
    row = np.concatenate([one, other, one, other, nodes])
    col = np.concatenate([other, one, one, other, nodes])
    pattern = pj.SparseLinearOperator((np.ones(row.size), row, col, 2 * (nodes.size,)))
    node = int(at[30, 30])
    b = np.zeros(nodes.size)
    b[[at[28, 30], at[33, 31]]] = 1.0, -1.0

    def entries(conductances):
        twice = jnp.concatenate([-conductances, -conductances])
        return jnp.concatenate([twice, -twice, jnp.full(nodes.size, leak)])

    def potential(conductances):
        A = pj.SparseLinearOperator((entries(conductances), pattern.sparsity))
        solution = pj.solve_entries(A, b, node, rtol=0.0, atol=1e-7)
        return solution.value, solution

    value_and_grad = jax.jit(jax.value_and_grad(potential, has_aux=True))
    (value, solution), gradient = value_and_grad(conductances)
    A = scipy.sparse.csc_array((np.asarray(entries(conductances)), (row, col)))
    lu = scipy.sparse.linalg.splu(A)
    x, y = lu.solve(b), lu.solve((nodes == node).astype(float))
    assert abs(value - x[node]) <= solution.bound <= 1e-7
    assert solution.rows_read < nodes.size // 2
    # Reciprocity: the current of one experiment times that of the other.
    want = -(x[one] - x[other]) * (y[one] - y[other])
    np.testing.assert_allclose(gradient, want, rtol=0, atol=1e-6)
