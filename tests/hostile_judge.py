"""Whether an answer that is said to be `successful` is one.

**The criterion.** Let S be A with its columns (rows, if wide) scaled to unit length for a
solver of full-rank systems, and A itself for one that finds a rank. y and v are the
solution and b in the same units, σ_i the singular values of S, c = eps max(rows, cols)
(twice that for the cutoff of `SVD`), k the rank that the solver tells (all, if it takes
the rank to be full), κ = σ_1 / σ_k, d = σ_{k+1} / σ_1, r = v − S y, and p = 1, or 2 for
the normal equations. A `successful` answer is right if everything is finite and

1. κ^-p > c / 10 and d^p ≤ 10 c: the rank is no rounding;
2. it solves a system nearby: ‖S^H r‖ ≤ 10 (f + d) (‖S‖² ‖y‖ + ‖S‖ ‖r‖), with ‖v‖ in the
   place of ‖r‖ if p = 2; and ‖r‖ ≤ 10 (f + d) ‖S‖ ‖y‖ if S has k rows. Here f = c, or c κ
   for the normal equations of a wide or square A;
3. it is the pseudoinverse solution y_k = S_k† v, S_k the best approximation of rank k, as
   far as rounding lets that be known: if g = 10 (c + d^p) κ^p < 1/2, then
   ‖y − y_k‖ ≤ 2 g (‖y_k‖ + κ ‖v − S y_k‖ / ‖S‖), with ‖v‖ / ‖S‖ in the last place if
   p = 2.

Solvers with a tolerance promise a residual (`broken_promise`), and the pseudoinverse
solution where it is fixed by that (`strayed`). All of it is computed here from the matrix
as stored, in NumPy's long double (where that is double precision, the bounds still hold
with their factor of ten).
"""

import functools as ft

import numpy as np


SLACK = 10
_SWEEPS = 14


def wrong(system, solution, *, rank=None, power=1, cutoff=1):
    """What is wrong with a `successful` solution of a direct solver, or `None`.

    - `rank`: as told by the solver; `None` if it takes the rank to be full.
    - `cutoff`: of the solver, in multiples of eps max(rows, cols).
    """
    if not _finite(system.matrix, system.vector, solution):
        return "not finite"
    eps = np.finfo(system.matrix.dtype).eps
    s, y, v = _wide_precision(system.matrix, solution, system.vector)
    rows, cols = s.shape
    short = min(rows, cols)
    noise = eps * max(rows, cols) * cutoff
    if rank is None:
        s, y, v = _unit_lengths(s, y, v)
    u, sigma, w = svd(_key(s))
    k = short if rank is None else int(rank)
    if k == 0 or sigma[0] == 0:
        sound = k == 0 and sigma[0] == 0 and not y.any()
        return None if sound else f"rank {k}, ‖S‖ = {sigma[0]:.1e}, ‖y‖ = {_norm(y):.1e}"
    kept, dropped = sigma[k - 1] / sigma[0], sigma[k] / sigma[0] if k < short else 0
    if not kept**power > noise / SLACK:
        return f"rank {k}: σ_k = {kept:.1e} σ_1 counts"
    if not dropped**power <= noise * SLACK:
        return f"rank {k}: σ_k+1 = {dropped:.1e} σ_1 does not count"

    wide = rows <= cols and power == 2
    delta = SLACK * (noise / kept + dropped if wide else noise + dropped)
    residual = v - s @ y
    other = v if power == 2 else residual
    scale = sigma[0] ** 2 * _norm(y) + sigma[0] * _norm(other)
    if not _norm(s.conj().T @ residual) <= delta * scale:
        return f"backward error {_norm(s.conj().T @ residual) / scale:.1e} > {delta:.1e}"
    allowed = delta * sigma[0] * _norm(y)
    if k == rows and not _norm(residual) <= allowed:
        return f"residual {_norm(residual):.1e} > {allowed:.1e}"

    grown = SLACK * (noise + dropped**power) * kept**-power
    coefficients = u[:, :k].conj().T @ v
    best = w[:, :k] @ (coefficients / sigma[:k])
    rest = _norm(v) if power == 2 else _norm(v - u[:, :k] @ coefficients) / kept
    allowed = 2 * grown * (_norm(best) + rest / sigma[0])
    error = _norm(y - best)
    if grown < 0.5 and not error <= allowed:
        return f"error {error:.1e} > {allowed:.1e}, of {_norm(best):.1e}"
    return None


def broken_promise(system, solution, rtol, *, relative_to="vector"):
    """What is wrong with a `successful` solution of an iterative solver, or `None`.

    It promises that |b − A x| is at most rtol |b| in the largest entry, up to a factor of
    ten and to rounding. `relative_to` names another promise:

    - `"gram"`: that of A^H b − A^H A x, for an inner solver of the normal equations;
    - `"projection"`: that of A A†b − A x, hence a small A^H (b − A x);
    - `"solution"`: |b − A x| at most rtol |x|.
    """
    if not _finite(system.matrix, system.vector, solution):
        return "not finite"
    eps = np.finfo(system.matrix.dtype).eps
    a, x, b = _wide_precision(system.matrix, solution, system.vector)
    norm, residual = _norm(a), b - a @ x
    rounding = 100 * eps * max(a.shape) * (norm * _norm(x) + _norm(b))
    sizes = {
        "vector": _norm(b),
        "gram": _norm(a.conj().T @ b),
        "projection": norm * _norm(b),
        "solution": _norm(x),
    }
    if relative_to in ("gram", "projection"):
        residual, rounding = a.conj().T @ residual, rounding * norm
    allowed = SLACK * rtol * np.sqrt(len(residual)) * sizes[relative_to] + rounding
    if not _norm(residual) <= allowed:
        return f"residual {_norm(residual):.1e} > {allowed:.1e}"
    return None


def strayed(system, solution, rtol, *, power=1):
    """How far an iterative solution lies from A†b, where the tolerance fixes it."""
    eps = np.finfo(system.matrix.dtype).eps
    a, x, b = _wide_precision(system.matrix, solution, system.vector)
    u, sigma, w = svd(_key(a))
    noise = max(a.shape) * eps
    k = int(np.sum(sigma > 100 * noise * sigma[0])) if sigma[0] > 0 else 0
    if k == 0:
        return f"‖x‖ = {_norm(x):.1e}" if x.any() else None
    kept = sigma[k - 1] / sigma[0]
    dropped = sigma[k] / sigma[0] if k < len(sigma) else 0
    grown = 10 * SLACK * (rtol + noise + dropped) * kept**-power
    best = w[:, :k] @ (u[:, :k].conj().T @ b / sigma[:k])
    allowed = grown * (_norm(best) + _norm(b) / sigma[0])
    if dropped < 10 * noise and grown < 0.1 and not _norm(x - best) <= allowed:
        return f"error {_norm(x - best):.1e} > {allowed:.1e}, of {_norm(best):.1e}"
    return None


def _finite(*arrays):
    return all(np.all(np.isfinite(array)) for array in arrays)


def _wide_precision(*arrays):
    return [np.asarray(a).astype(np.result_type(a, np.longdouble)) for a in arrays]


def _norm(array):
    """As np.linalg.norm, which rounds to double precision."""
    return np.sqrt(np.sum(np.abs(array) ** 2))


def _unit_lengths(s, y, v):
    """A x = b in the units in which columns (rows, if wide) have length one."""
    wide = s.shape[1] > s.shape[0]
    lengths = np.sqrt(np.sum(np.abs(s) ** 2, axis=1 if wide else 0))
    lengths = np.where(lengths > 0, lengths, 1)
    if wide:
        return s / lengths[:, None], y, v / lengths
    return s / lengths, lengths * y, v


class _key:
    """An array that can be looked up by its contents."""

    def __init__(self, array):
        self.array = array
        self._contents = (array.shape, array.dtype.str, array.tobytes())

    def __hash__(self):
        return hash(self._contents)

    def __eq__(self, other):
        return self._contents == other._contents


@ft.cache
def svd(key):
    """(U, σ, V) by one-sided Jacobi rotations (Hestenes), in the precision given."""
    array = key.array
    if array.shape[0] < array.shape[1]:
        v, sigma, u = svd(_key(np.ascontiguousarray(array.conj().T)))
        return u, sigma, v
    u, v = array.copy(), np.eye(array.shape[1], dtype=array.dtype)
    eps = np.finfo(array.dtype).eps
    for _ in range(_SWEEPS):
        turned = False
        for p in range(array.shape[1]):
            for q in range(p + 1, array.shape[1]):
                turned |= _rotate(u, v, p, q, eps)
        if not turned:
            break
    sigma = np.sqrt(np.sum(np.abs(u) ** 2, axis=0))
    order = np.argsort(-sigma)
    u, sigma, v = u[:, order], sigma[order], v[:, order]
    return u / np.where(sigma > 0, sigma, 1), sigma, v


def _rotate(u, v, p, q, eps):
    """Makes two columns of U orthogonal; whether they were not."""
    inner = np.vdot(u[:, p], u[:, q])
    first, second = (np.vdot(u[:, i], u[:, i]).real for i in (p, q))
    if np.abs(inner) <= eps * np.sqrt(first * second):
        return False
    phase = np.conj(inner / np.abs(inner))
    zeta = (second - first) / (2 * np.abs(inner))
    t = (1 if zeta >= 0 else -1) / (np.abs(zeta) + np.sqrt(1 + zeta * zeta))
    c = 1 / np.sqrt(1 + t * t)
    for matrix in (u, v):
        left, right = matrix[:, p].copy(), matrix[:, q] * phase
        matrix[:, p], matrix[:, q] = c * left - c * t * right, c * t * left + c * right
    return True
