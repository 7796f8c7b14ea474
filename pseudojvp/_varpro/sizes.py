"""How many data, columns and coefficients a data set has, known before it is fitted."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp

from .model import (
    check_rows,
    check_shapes,
    common_dtype,
    has_real_coefficients,
    real_matrix,
    size_of,
)


class Sizes(NamedTuple):
    """Of a data set: shape of the offset, n if columns can be combined, counts."""

    shift: tuple[int, ...] | None
    combined: int | None
    data: int
    coefficients: int  # of real numbers, as `data`
    shape: tuple[int, int, int]


def count_coefficients(whole, elimination, args, observations) -> int:
    phi, _ = eqx.filter_eval_shape(elimination.model_at, whole, args)
    check_rows(phi, observations.data, elimination.caller)
    return size_of(phi)[1]


def sizes_of(whole, elimination, args, observations) -> Sizes:
    data = observations.data
    phi, shift = eqx.filter_eval_shape(elimination.model_at, whole, args)
    check_shapes(phi, shift, data, elimination.caller)
    (m, k), n = data.shape, size_of(phi)[1]
    real = has_real_coefficients(phi)
    of_datum = ways = 1
    if jnp.issubdtype(common_dtype(phi, shift, data), jnp.complexfloating):
        of_datum, ways = 2, 1 if real else 2
    return Sizes(
        None if shift is None else shift.shape,
        None if real else n,
        of_datum * m * k,
        ways * n * k,
        (m, k, n),
    )


def check_real(whole, elimination, args) -> None:
    def matrix(theta):
        phi, _ = elimination.model_at(theta, args)
        return real_matrix(phi, elimination.caller, "loss")

    eqx.filter_eval_shape(matrix, whole)


def check_counts(sizes: tuple[Sizes, ...], parameters: int) -> None:
    if sum(s.data for s in sizes) < sum(s.coefficients for s in sizes) + parameters:
        data = sum(m * k for m, k, _ in (s.shape for s in sizes))
        coefficients = sum(n * k for _, k, n in (s.shape for s in sizes))
        raise ValueError(
            f"`varpro` got {data} data for {coefficients} coefficients and {parameters} "
            "nonlinear parameters. Use more data than unknowns."
        )
