"""What solves on four devices tell of themselves, as JSON: `python sharding_program.py
LU QR ...`. The number of devices is fixed when JAX starts.

Each error is that of x, dL/dA and dL/db from NumPy, where L = |x|².
"""

import json
import re
import sys

import jax
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import pseudojvp as pj


DEVICES, BATCH, TOL = 4, 8, 1e-13
rng = np.random.default_rng(0)
square = rng.normal(size=(BATCH, 3, 3))
tall = rng.normal(size=(BATCH, 5, 3))
deficient = rng.normal(size=(BATCH, 5, 2)) @ rng.normal(size=(BATCH, 2, 3))
definite = square @ square.transpose(0, 2, 1) + np.eye(3)
dominant = square + 6 * np.eye(3)
psd = lx.positive_semidefinite_tag
identity = lambda vector: vector
CASES = {
    "LU": (pj.LU(), square, ()),
    "Cholesky": (pj.Cholesky(), definite, psd),
    "Triangular": (pj.Triangular(), np.tril(dominant), lx.lower_triangular_tag),
    "Tridiagonal": (
        pj.Tridiagonal(),
        np.triu(np.tril(dominant, 1), -1),
        lx.tridiagonal_tag,
    ),
    "Diagonal": (lx.Diagonal(True), dominant * np.eye(3), lx.diagonal_tag),
    "QR": (pj.QR(), tall, ()),
    "QR-wide": (pj.QR(), tall.transpose(0, 2, 1), ()),
    "PivotedQR": (pj.PivotedQR(), deficient, ()),
    "SVD": (pj.SVD(), deficient, ()),
    "CholeskyQR": (pj.CholeskyQR(), tall, ()),
    "Normal(Cholesky)": (pj.Normal(pj.Cholesky()), tall, ()),
    "Normal(CG)": (pj.Normal(pj.CG(TOL, TOL)), tall, ()),
    "CG": (pj.CG(TOL, TOL), definite, psd),
    "MINRES": (pj.MINRES(TOL, TOL), definite, lx.symmetric_tag),
    "LSMR": (pj.LSMR(TOL, TOL), tall, ()),
    "GMRES": (pj.GMRES(TOL, TOL), dominant, ()),
    "BiCGStab": (pj.BiCGStab(TOL, TOL), dominant, ()),
    "FlexibleCG": (pj.FlexibleCG(TOL, TOL, preconditioner=identity), definite, psd),
    "FlexibleGMRES": (pj.FlexibleGMRES(TOL, TOL, preconditioner=identity), dominant, ()),
    "Neumann": (pj.Neumann(200, 0.1), dominant, ()),
    "QR(2)": (pj.QR(blocks=2), tall, ()),
    "PivotedQR(4)": (pj.PivotedQR(blocks=4), tall, ()),
    "Auto(True)": (pj.AutoLinearSolver(True), square, ()),
    "Auto(False)": (pj.AutoLinearSolver(False), deficient, ()),
}
AUTO = jax.make_mesh((DEVICES,), ("i",), axis_types=(AxisType.Auto,))
EXPLICIT = jax.make_mesh((DEVICES,), ("i",))
PLANE = jax.make_mesh((2, 2), ("i", "j"))
EACH, SAME = PartitionSpec("i"), PartitionSpec()


def truth(matrix, vector):
    inverse = np.linalg.pinv(matrix)
    x = inverse @ vector
    r, u = vector - matrix @ x, 2 * x
    ct_b = inverse.T @ u
    ct_a = np.outer(r, inverse @ ct_b) - np.outer(ct_b, x)
    null = u - inverse @ (matrix @ u)
    return x, ct_a + np.outer(inverse.T @ x, null), ct_b


def gradient(solver, tags):
    """Value, and gradients with respect to A and b."""

    def loss(A, b):
        operator = lx.MatrixLinearOperator(A, tags)
        x = pj.linear_solve(operator, b, solver).value
        return jnp.sum(x**2), x

    def function(A, b):
        (_, x), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(A, b)
        return x, *gradients

    return function


def error(got, want):
    pairs = zip(got, want, strict=True)
    # NaN if any is, unlike Python's `max`.
    return float(np.max([np.abs(g - w).max() / np.abs(w).max() for g, w in pairs]))


def in_shard_map(function, specs, out_specs, *arguments):
    mapped = jax.shard_map(function, mesh=AUTO, in_specs=specs, out_specs=out_specs)
    return jax.jit(mapped)(*arguments)


def put(mesh, *arrays):
    return [jax.device_put(array, NamedSharding(mesh, EACH)) for array in arrays]


def uses(solver, matrices, tags):
    """The error of each use."""
    function = gradient(solver, tags)
    vectors = rng.normal(size=matrices.shape[:2])
    each = [truth(*pair) for pair in zip(matrices, vectors, strict=True)]
    stacked = tuple(map(np.stack, zip(*each, strict=True)))
    told = {}
    # Each device has the problems of its part of the batch.
    out = in_shard_map(
        jax.vmap(function), (EACH, EACH), (EACH, EACH, EACH), matrices, vectors
    )
    told["vmap in shard_map"] = error(out, stacked)

    def alone(A, b):
        x, *gradients = function(A[0], b)
        return x[None], gradients[0][None], gradients[1]

    # One problem on each device, of which b is the same: its cotangent is a sum.
    some, shared = matrices[:DEVICES], vectors[0]
    mixed = [truth(matrix, shared) for matrix in some]
    x, ct_a, ct_b = map(np.stack, zip(*mixed, strict=True))
    out = in_shard_map(alone, (EACH, SAME), (EACH, EACH, SAME), some, shared)
    told["replicated b"] = error(out, (x, ct_a, ct_b.sum(0)))

    explicit = jax.jit(jax.vmap(function))(*put(EXPLICIT, matrices, vectors))
    sharded = all(leaf.sharding.spec[0] == "i" for leaf in explicit)
    told["explicit"] = error(explicit, stacked)
    told["gathered"] = not sharded
    return told


def sums(solver, tags):
    """The errors for AᵀA + I, of which each device has rows of A."""
    rows, vector = rng.normal(size=(DEVICES * 6, 3)), rng.normal(size=3)

    def function(A, b):
        operator = lx.FunctionLinearOperator(
            lambda x: lax.psum(A.T @ (A @ x), "i") + x,
            jax.eval_shape(lambda: b),
            tags,
            closure_convert=False,
        )
        return pj.linear_solve(operator, b, solver).value

    def inside(A, b):
        loss = lambda A, b: jnp.sum(function(A, b) ** 2)
        return function(A, b), *jax.grad(loss, (0, 1))(A, b)

    out = in_shard_map(inside, (EACH, SAME), (SAME, EACH, SAME), rows, vector)
    x, ct_gram, ct_b = truth(rows.T @ rows + np.eye(3), vector)
    return error(out, (x, rows @ (ct_gram + ct_gram.T), ct_b))


def spread(solver):
    """The error for a tall A, of which each device has rows, and of b too."""
    rows, vector = rng.normal(size=(DEVICES * 6, 3)), rng.normal(size=DEVICES * 6)
    structure = jax.ShapeDtypeStruct((3,), jnp.float64)

    def function(A, b):
        operator = lx.FunctionLinearOperator(lambda x: A @ x, structure)
        return pj.linear_solve(operator, b, solver).value

    def inside(A, b):
        loss = lambda A, b: jnp.sum(function(A, b) ** 2)
        return function(A, b), *jax.grad(loss, (0, 1))(A, b)

    out = in_shard_map(inside, (EACH, EACH), (SAME, EACH, EACH), rows, vector)
    return error(out, truth(rows, vector))


def rows_over_explicit_axes(solver, matrices, tags):
    """The error for each way to shard one A, with b sharded as its rows or not at all."""
    matrix = np.vstack([matrices[:3].reshape(-1, 3), matrices[3, :1]])  # 16 rows
    matrix = np.hstack([matrix, matrix @ [[1.0], [2.0], [-1.0]]])  # of rank 3 of 4
    if not isinstance(solver, pj.PivotedQR | pj.LSMR):
        matrix[::4, 3] += 1
    vector = rng.normal(size=16)
    function, told = jax.jit(gradient(solver, tags)), {}
    for sides in (("i", "j"), (None, "j"), (("i", "j"), None)):
        for of_vector in {sides[0], None}:
            specs = PartitionSpec(*sides), PartitionSpec(of_vector)
            arrays = [
                jax.device_put(array, NamedSharding(PLANE, spec))
                for array, spec in zip((matrix, vector), specs, strict=True)
            ]
            out = function(*arrays)
            told[str(specs)] = error(out, truth(matrix, vector))
            told[f"{specs} stays"] = float(out[1].sharding.spec != specs[0])
    return told


def compiled(solver, tags, shape, mesh=None):
    sharding = None if mesh is None else NamedSharding(mesh, EACH)
    arguments = (
        jax.ShapeDtypeStruct((4096, *shape), float, sharding=sharding),
        jax.ShapeDtypeStruct((4096, shape[0]), float, sharding=sharding),
    )
    return jax.jit(jax.vmap(gradient(solver, tags))).lower(*arguments).compile()


def bytes_of(solver, matrices, tags):
    """What a sharded batch gathers, and its memory on a device, of that of one alone."""
    shape = tuple(4 * size for size in matrices.shape[1:])
    program, alone = compiled(solver, tags, shape, AUTO), compiled(solver, tags, shape)
    temporary = lambda program: program.memory_analysis().temp_size_in_bytes
    return {
        "gathers": len(re.findall("all-gather|all-to-all", program.as_text())),
        "memory": temporary(program) / temporary(alone),
        "sharded": all(s.spec[:1] == ("i",) for s in program.output_shardings),
    }


def failing():
    """The codes of results, of which one member of a batch is singular."""
    matrices = square.copy()
    matrices[3] = 1.0
    vectors = np.ones((BATCH, 3))

    def codes(A, b):
        operator = lx.MatrixLinearOperator(A)
        (code,) = jax.tree.leaves(
            pj.linear_solve(operator, b, pj.LU(), throw=False).result
        )
        return code != 0

    batch = jax.jit(jax.vmap(codes))(*put(AUTO, matrices, vectors))
    inside = in_shard_map(jax.vmap(codes), (EACH, EACH), EACH, matrices, vectors)
    return {
        "batch": np.flatnonzero(batch).tolist(),
        "sharded": batch.sharding.spec == EACH,
        "shard_map": np.flatnonzero(inside).tolist(),
    }


def gather():
    """The error of a function that takes entries out of rows on several devices."""
    at = jnp.arange(DEVICES)
    matrix, vector = put(EXPLICIT, 2 * np.eye(DEVICES), np.ones(DEVICES))
    solver = pj.FlexibleCG(TOL, TOL, preconditioner=lambda v: v / matrix[at, at])
    operator = lx.MatrixLinearOperator(matrix, psd)
    try:
        return pj.linear_solve(operator, vector, solver).value.tolist()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    told = {}
    for name in sys.argv[1:]:
        kind, _, case = name.rpartition(" ")
        if kind == "gather":
            told[name] = gather()
        elif kind == "failing":
            told[name] = failing()
        elif kind == "sums":
            solver, _, tags = CASES[case]
            told[name] = sums(solver, tags)
        elif kind == "spread":
            told[name] = spread(CASES[case][0])
        elif kind == "rows":
            told[name] = rows_over_explicit_axes(*CASES[case])
        elif kind == "bytes":
            told[name] = bytes_of(*CASES[case])
        else:
            told[name] = uses(*CASES[case])
    print(json.dumps(told))
