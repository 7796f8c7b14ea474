"""How much faster is a rank-deficient solve by pivoted QR than by the SVD (milliseconds)?

1000 x 500 of rank 400, 20000 x 200 of rank 150, and 1000 matrices of 64 x 64 of rank 50:
the solution, and the gradient of <c, A†b> with respect to A and b. The error is relative
to NumPy's `pinv`.

    python -m benchmarks.pivoted_qr [--rounds 15]
"""

import jax
import lineax as lx
import numpy as np

import pseudojvp as pj

from . import dense
from .harness import relative_error
from .turns import parse, print_header, take_turns


_CASES = {
    "1000 x 500 of rank 400": ((), 1000, 500, 400),
    "20000 x 200 of rank 150": ((), 20000, 200, 150),
    "1000 matrices of 64 x 64 of rank 50": ((1000,), 64, 64, 50),
}
_CONTENDERS = {
    "pseudojvp, `PivotedQR()`": (pj.linear_solve, pj.PivotedQR()),
    "pseudojvp, `SVD()`": (pj.linear_solve, pj.SVD()),
    "lineax, `SVD()`": (lx.linear_solve, lx.SVD()),
}


def _problem(batch, rows, cols, rank):
    """A, b and c."""
    rng = np.random.default_rng(0)
    left = rng.standard_normal((*batch, rows, rank))
    right = rng.standard_normal((*batch, rank, cols))
    vectors = [rng.standard_normal((*batch, size)) for size in (rows, cols)]
    return left @ right, *vectors


def _mapped(function, batch):
    for _ in batch:
        function = jax.vmap(function)
    return function


def _reference(function, batch, arguments):
    if not batch:
        return function(*arguments)
    results = [function(*member) for member in zip(*arguments, strict=True)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *results)


def _run(name, batch, arguments, program, reference, rounds):
    truth = _reference(reference, batch, arguments)
    arguments = jax.device_put(arguments)
    contenders, errors = {}, {}
    for contender, (linear_solve, solver) in _CONTENDERS.items():
        compiled = jax.jit(_mapped(program(linear_solve, solver), batch))
        contenders[contender] = lambda call=compiled: call(*arguments)
        errors[contender] = relative_error(contenders[contender](), truth)
    take_turns(name, contenders, errors, rounds)


def main() -> None:
    arguments = parse(__doc__, 15).parse_args()
    jax.config.update("jax_enable_x64", True)
    print_header()
    for name, (batch, *sizes) in _CASES.items():
        matrix, vector, weights = _problem(batch, *sizes)
        _run(
            f"{name}: solve",
            batch,
            (matrix, vector),
            dense.solve,
            dense.reference_solution,
            arguments.rounds,
        )
        _run(
            f"{name}: gradient",
            batch,
            (matrix, vector, weights),
            dense.gradient,
            dense.reference_gradient,
            arguments.rounds,
        )


if __name__ == "__main__":
    main()
