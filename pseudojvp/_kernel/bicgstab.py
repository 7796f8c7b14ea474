"""BiCGStab on the host, scaled by the diagonal."""

from typing import Any

import numpy as np


_STEPS = 1000


def krylov(matrix: Any, diagonal: Any, rhs: Any, target: float) -> tuple[Any, int]:
    """x with ‖b − A x‖₂ ≤ target, as far as it comes, and the products that it took.

    The x with the smallest residual on the way, as the recursion has it. After van der
    Vorst (1992). Not SciPy's: its breakdowns are of absolute size, and its dot products
    wake threads of BLAS, which wait for each other where cores are busy.
    """
    scale = two_norm(rhs)
    x = best = np.zeros_like(rhs)
    if scale == 0:
        return x, 0
    residual = rhs / scale
    shadow, direction = np.conj(residual), np.zeros_like(rhs)
    image, rho, alpha, omega = direction, 1.0, 1.0, 1.0
    least, products = 1.0, 0
    for _ in range(_STEPS):
        last, rho = rho, np.sum(shadow * residual)
        beta = rho / last * alpha / omega if products else 0.0
        direction = residual + beta * (direction - omega * image)
        scaled = direction / diagonal
        image = matrix @ scaled
        alpha = rho / np.sum(shadow * image)
        half = residual - alpha * image
        scaled_half = half / diagonal
        image_half = matrix @ scaled_half
        size = np.sum(np.abs(image_half) ** 2)
        omega = np.sum(np.conj(image_half) * half) / size if size else 0.0
        x = x + alpha * scaled + omega * scaled_half
        residual = half - omega * image_half
        products += 2
        norm = two_norm(residual)
        if norm < least:
            least, best = norm, x
        # A breakdown is a division by zero, of which nothing finite comes.
        if norm * scale <= target or not np.isfinite(norm) or omega == 0:
            break
    return best * scale, products


def two_norm(vector: Any) -> float:
    return float(np.sqrt(np.sum(np.abs(vector) ** 2)))
