"""How long does a sparse product take, beside SciPy, BCOO and BCSR (milliseconds)?

Matrices of 100,000 rows and 0.5 million entries, one vector and 16: A v, A^T u, ten
products in one loop as a Krylov solver has them, and the gradient of |A v|² with respect
to the entries and v, for which SciPy has no peer. It is run by itself:
`python -m benchmarks.sparse_products`.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable

import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import numpy as np
import scipy.sparse

import pseudojvp

from . import report
from .harness import relative_error


_ROWS = 100_000
_ENTRIES = 500_000
_STEPS = 10


@dataclasses.dataclass(frozen=True)
class Row:
    """The times of one product, in milliseconds: medians and quartiles over the rounds.

    - `ratios`: time over the first contender's, the median over the rounds.
    - `errors`: relative to SciPy's product, or to the formula of the gradient.
    """

    name: str
    median_ms: dict[str, float]
    quartiles_ms: dict[str, tuple[float, float]]
    ratios: dict[str, float]
    errors: dict[str, float]


def _stencil() -> scipy.sparse.csr_array:
    """A 5-point stencil with random coefficients: rows of nearly equal length."""
    side = round(_ROWS**0.5)
    line = scipy.sparse.diags_array(
        np.ones((3, side)), offsets=[-1, 0, 1], shape=(side,) * 2
    )
    matrix = scipy.sparse.csr_array(scipy.sparse.kronsum(line, line))
    return _with_random_data(matrix)


def _random() -> scipy.sparse.csr_array:
    """Entries anywhere: rows of 0 to some 17."""
    rng = np.random.default_rng(0)
    place = rng.integers(0, _ROWS, (2, _ENTRIES))
    matrix = scipy.sparse.coo_array((np.ones(_ENTRIES), tuple(place)), shape=(_ROWS,) * 2)
    return _with_random_data(matrix.tocsr())


def _skewed() -> scipy.sparse.csr_array:
    """Row lengths of a power law: a few rows have a tenth of all entries."""
    rng = np.random.default_rng(0)
    row = np.minimum(rng.pareto(0.7, _ENTRIES) * 20, _ROWS - 1).astype(int)
    col = rng.integers(0, _ROWS, _ENTRIES)
    matrix = scipy.sparse.coo_array((np.ones(_ENTRIES), (row, col)), shape=(_ROWS,) * 2)
    return _with_random_data(matrix.tocsr())


def _with_random_data(matrix):
    rng = np.random.default_rng(1)
    matrix.data = rng.standard_normal(matrix.nnz) / 5
    return matrix


_matrices = {"stencil": _stencil, "random": _random, "power law": _skewed}


def _multiply(matrix, vectors):
    if not isinstance(matrix, pseudojvp.SparseLinearOperator):
        return matrix @ vectors
    return matrix.mv(vectors) if vectors.ndim == 1 else jax.vmap(matrix.mv, 1, 1)(vectors)


def _loop(matrix, vectors):
    step = lambda _, vectors: _multiply(matrix, vectors)
    return jax.lax.fori_loop(0, _STEPS, step, vectors)


def _gradient(matrix, vectors):
    """With respect to the entries, as an array, and the vectors."""

    def loss(data, vectors):
        if isinstance(matrix, pseudojvp.SparseLinearOperator):
            moved = pseudojvp.SparseLinearOperator((data, matrix.sparsity))
        elif isinstance(matrix, jsparse.BCOO):
            moved = jsparse.BCOO((data, matrix.indices), shape=matrix.shape)
        else:
            arrays = data, matrix.indices, matrix.indptr
            moved = jsparse.BCSR(arrays, shape=matrix.shape)
        return jnp.sum(_multiply(moved, vectors) ** 2)

    return jax.grad(loss, argnums=(0, 1))(matrix.data, vectors)


def _gradient_reference(matrix, vectors):
    row = np.repeat(np.arange(_rows(matrix)), np.diff(matrix.indptr))
    twice = 2 * (matrix @ vectors)
    terms = twice[row] * vectors[matrix.indices]
    return terms if terms.ndim == 1 else terms.sum(axis=1), matrix.T @ twice


def _rows(matrix) -> int:
    return matrix.shape[0]


def _scipy_loop(matrix, vectors):
    for _ in range(_STEPS):
        vectors = matrix @ vectors
    return vectors


def measure(name: str, columns: int | None, kind: str, rounds: int) -> Row:
    """Returns the row of the matrix `name`: every contender once a round."""
    matrix = _matrices[name]()
    if kind == "transpose":
        transposed = scipy.sparse.csr_array(matrix.T)
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal(
        _rows(matrix) if columns is None else (_rows(matrix), columns)
    )
    formats = {
        "ours": pseudojvp.SparseLinearOperator(matrix),
        "BCOO": jsparse.BCOO.from_scipy_sparse(scipy.sparse.csr_matrix(matrix)),
        "BCSR": jsparse.BCSR.from_scipy_sparse(scipy.sparse.csr_matrix(matrix)),
    }
    contenders: dict[str, Callable]
    if kind == "transpose":
        # BCSR has no transpose to multiply with: it is given that of the matrix.
        formats["BCSR"] = jsparse.BCSR.from_scipy_sparse(
            scipy.sparse.csr_matrix(transposed)
        )
        formats["ours"] = formats["ours"].transpose()
        formats["BCOO"] = formats["BCOO"].T
        program, reference, scipy_program = _multiply, matrix.T @ vectors, _multiply
        matrix = matrix.T
    elif kind == "product":
        program, reference, scipy_program = _multiply, matrix @ vectors, _multiply
    elif kind == "ten products":
        reference = _scipy_loop(matrix, vectors)
        program, scipy_program = _loop, _scipy_loop
    else:
        program, reference = _gradient, _gradient_reference(matrix, vectors)
        scipy_program = None
    contenders = {}
    if scipy_program is not None:
        contenders["SciPy"] = lambda: scipy_program(matrix, vectors)
    on_device = jnp.asarray(vectors)
    for label, operand in formats.items():
        call = jax.jit(program)
        contenders[label] = lambda call=call, operand=operand: jax.block_until_ready(
            call(operand, on_device)
        )
    errors = {
        label: relative_error(call(), reference) for label, call in contenders.items()
    }
    samples = {label: [] for label in contenders}
    for _ in range(rounds):
        for label, call in contenders.items():
            start = time.perf_counter()
            call()
            samples[label].append(1e3 * (time.perf_counter() - start))
    first = np.array(next(iter(samples.values())))
    times = {label: np.array(values) for label, values in samples.items()}
    return Row(
        f"{name}, {columns or 1} column(s): {kind}",
        {label: float(np.median(value)) for label, value in times.items()},
        {label: tuple(np.percentile(v, [25, 75])) for label, v in times.items()},
        {label: float(np.median(value / first)) for label, value in times.items()},
        errors,
    )


def as_markdown(rows: list[Row]) -> str:
    """Returns one line for each row: milliseconds, and the ratio to the first."""
    labels = ["SciPy", "ours", "BCOO", "BCSR"]
    lines = [
        "| product | "
        + " | ".join(f"{label}, ms (ratio)" for label in labels)
        + " | error |",
        "|---|" + "---:|" * (len(labels) + 1),
    ]
    for row in rows:
        cells = [
            f"{row.median_ms[label]:.3g} ({row.ratios[label]:.2f})"
            if label in row.median_ms
            else ""
            for label in labels
        ]
        lines.append(
            f"| {row.name} | " + " | ".join(cells) + f" | {row.errors['ours']:.1e} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="samples of each time")
    rounds = parser.parse_args().rounds
    jax.config.update("jax_enable_x64", True)
    rows = []
    for name in _matrices:
        for columns in (None, 16):
            for kind in ("product", "transpose", "ten products", "gradient"):
                rows.append(measure(name, columns, kind, rounds))
                print(as_markdown(rows[-1:]).splitlines()[-1], flush=True)
    stated = "; ".join(f"{key}: {value}" for key, value in report.environment().items())
    print(f"\n{stated}\n\n{as_markdown(rows)}")


if __name__ == "__main__":
    main()
