"""Operators with known orthonormal eigenvectors."""

import abc
import math
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Inexact, Integer, Real

from ..._base.order import after_in_batch
from ..._base.structure import Structure
from ..._base.tree import one_or_nan
from ..._kernel.condition import full_rank_result, PROBES, probes, resolve_rcond
from ..._kernel.products import matmul
from ..._operator.circulant import Circulant
from ..._operator.damped_kronecker import DampedKronecker
from ..._operator.eigh import Eigh
from ..._operator.matrix import matrix_of
from ..._operator.parts import along_each_axis
from ..._operator.sparse import untagged
from ..state import structures_of, swapped


class AbstractBasis(eqx.Module):
    """Orthonormal vectors, the columns of Q."""

    @abc.abstractmethod
    def analyse(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " k"]:
        """Returns Qᴴ v, or as much of it as says all."""

    @abc.abstractmethod
    def synthesise(self, coefficients: Inexact[Array, " k"]) -> Inexact[Array, " n"]:
        """Returns Q c."""

    @abc.abstractmethod
    def conj(self) -> "AbstractBasis":
        """Returns the conjugate vectors."""

    def restrict(self, values: Inexact[Array, " n"]) -> Inexact[Array, " k"]:
        """Returns those of the eigenvalues that belong to what `analyse` returns."""
        return values


class Standard(AbstractBasis):
    """The unit vectors."""

    def analyse(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        return vector

    def synthesise(self, coefficients: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        return coefficients

    def conj(self) -> "Standard":
        return self


class Columns(AbstractBasis):
    """The Kronecker product of the columns of some matrices, or those of one."""

    factors: tuple[Inexact[Array, "_ _"], ...]

    def analyse(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " k"]:
        products = [lambda rows, q=q: matmul(rows, q.conj()) for q in self.factors]
        sizes = [(q.shape[0], q.shape[1]) for q in self.factors]
        return along_each_axis(products, sizes, vector)

    def synthesise(self, coefficients: Inexact[Array, " k"]) -> Inexact[Array, " n"]:
        products = [lambda rows, q=q: matmul(rows, q.T) for q in self.factors]
        sizes = [(q.shape[1], q.shape[0]) for q in self.factors]
        return along_each_axis(products, sizes, coefficients)

    def conj(self) -> "Columns":
        return Columns(tuple(factor.conj() for factor in self.factors))


class Fourier(AbstractBasis):
    """The vectors of the discrete Fourier transform; half of them of real vectors."""

    size: int = eqx.field(static=True)
    of_real: bool = eqx.field(static=True)
    conjugated: bool = eqx.field(static=True, default=False)

    def analyse(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " k"]:
        if self.of_real:
            return self._turned(jnp.fft.rfft(vector, norm="ortho"))
        return self._turned(jnp.fft.fft(self._turned(vector), norm="ortho"))

    def synthesise(self, coefficients: Inexact[Array, " k"]) -> Inexact[Array, " n"]:
        coefficients = self._turned(coefficients)
        if self.of_real:
            return jnp.fft.irfft(coefficients, self.size, norm="ortho")
        return self._turned(jnp.fft.ifft(coefficients, norm="ortho"))

    def conj(self) -> "Fourier":
        return Fourier(self.size, self.of_real, not self.conjugated)

    def restrict(self, values: Inexact[Array, " n"]) -> Inexact[Array, " k"]:
        return values[: self.size // 2 + 1] if self.of_real else values

    def _turned(self, array):
        return array.conj() if self.conjugated else array


class SpectralState(eqx.Module):
    """A = Q diag(λ) Qᴴ + μ (I − Q Qᴴ), with what counts as nonzero of λ and μ."""

    basis: AbstractBasis
    values: Inexact[Array, " k"]
    kept: Bool[Array, " k"]
    complement: Inexact[Array, ""] | None  # μ; `None` where Q is all
    complement_kept: Bool[Array, ""]
    rank: Integer[Array, ""]
    reciprocal_condition: Real[Array, ""]
    sound: Bool[Array, ""]  # Q is orthonormal, as far as it was looked at
    structures: eqxi.Static

    @classmethod
    def create(
        cls,
        operator: lx.AbstractLinearOperator,
        *,
        full_rank: bool,
        rcond: float | None,
    ) -> "SpectralState":
        structures = structures_of(operator)
        basis, values, complement, sound = _spectrum(untagged(operator))
        missing = structures.value[0].size - values.size
        sizes = jnp.abs(values)
        if complement is not None:
            sizes = jnp.append(sizes, jnp.abs(complement))
        largest = jnp.max(sizes, initial=0)
        estimate = jnp.ones((), sizes.dtype)
        if sizes.size > 0:
            estimate = jnp.min(sizes) / jnp.where(largest > 0, largest, 1)
        # A NaN or an Inf is no largest eigenvalue.
        estimate = jnp.where(jnp.isfinite(jnp.sum(sizes)), estimate, 0)
        kept = jnp.ones(sizes.shape, bool)
        if not full_rank:
            default = float(jnp.finfo(sizes.dtype).eps) * structures.value[0].size
            kept = sizes > resolve_rcond(rcond, default, sizes.dtype) * largest
        last = jnp.array(False) if complement is None else kept[-1]
        kept = kept[: values.size]
        return cls(
            basis,
            values,
            kept,
            complement,
            last,
            jnp.sum(kept) + missing * last.astype(int),
            estimate,
            sound,
            structures,
        )

    def solve(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        coefficients = self.basis.analyse(vector)
        inverse = self.basis.restrict(_inverse(self.values, self.kept))
        dtype = coefficients.dtype
        solution = self.basis.synthesise(inverse.astype(dtype) * coefficients)
        if self.complement is not None:
            rest = vector - self.basis.synthesise(coefficients)
            inverse = _inverse(self.complement, self.complement_kept)
            solution = solution + inverse.astype(dtype) * rest
        return solution

    def transpose(self) -> "SpectralState":
        return self._conjugate_basis(self.values, self.complement, flipped=True)

    def conj(self) -> "SpectralState":
        complement = None if self.complement is None else self.complement.conj()
        return self._conjugate_basis(self.values.conj(), complement, flipped=False)

    def _conjugate_basis(self, values, complement, *, flipped: bool):
        structures = swapped(self.structures) if flipped else self.structures
        return SpectralState(
            self.basis.conj(),
            values,
            self.kept,
            complement,
            self.complement_kept,
            self.rank,
            self.reciprocal_condition,
            self.sound,
            structures,
        )

    def result(self, *, full_rank: bool) -> lx.RESULTS:
        results = lx.RESULTS
        if full_rank:
            size = self.structures.value[0].size
            told = full_rank_result(self.reciprocal_condition, size, size)
        else:
            finite = jnp.isfinite(jnp.sum(jnp.abs(self.values)))
            told = results.where(finite, results.successful, results.singular)
        return results.where(self.sound, told, results.breakdown)

    def stats(self, *, full_rank: bool) -> dict[str, Any]:
        if full_rank:
            return {"reciprocal_condition": self.reciprocal_condition}
        return {"rank": self.rank}


def _inverse(values: Inexact[Array, "*k"], kept: Bool[Array, "*k"]):
    return jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)


def _spectrum(operator: lx.AbstractLinearOperator):
    """(basis, eigenvalues, that of the complement, whether the basis is orthonormal)."""
    sound = jnp.array(True)
    if isinstance(operator, Circulant):
        of_real = not jnp.iscomplexobj(operator.column)
        basis = Fourier(operator.column.size, of_real)
        return basis, operator.eigenvalues(), None, sound
    if isinstance(operator, Eigh):
        rows, columns = operator.vectors.shape
        complement = operator.complement if columns < rows else None
        sound = _is_orthonormal(operator.vectors)
        return Columns((operator.vectors,)), operator.values, complement, sound
    if isinstance(operator, DampedKronecker):
        factors, values = [], jnp.ones(1, operator.damping.dtype)
        for factor in operator.kronecker.operators:
            matrix = after_in_batch(values, matrix_of(factor))
            finite = jnp.all(jnp.isfinite(matrix))
            spectrum, vectors = jnp.linalg.eigh(jnp.where(finite, matrix, 0))
            spectrum = spectrum * one_or_nan(finite).astype(spectrum.dtype)
            values = jnp.kron(values, spectrum)
            factors.append(vectors)
        return Columns(tuple(factors)), values + operator.damping, None, sound
    return Standard(), diagonal_of(operator), None, sound


def diagonal_of(operator: lx.AbstractLinearOperator) -> Inexact[Array, " n"]:
    structure = Structure.of(operator.in_structure())
    if isinstance(operator, lx.IdentityLinearOperator):
        return jnp.ones(structure.size, structure.dtype)
    return jnp.asarray(lx.diagonal(operator)).astype(structure.dtype)


def _is_orthonormal(vectors: Inexact[Array, "n k"]) -> Bool[Array, ""]:
    """Whether Vᴴ V v is v, for each v of a basis, or for a few fixed ones of many."""
    if vectors.size == 0:
        return jnp.array(True)
    size = vectors.shape[1]
    real = jnp.finfo(vectors.dtype).dtype
    columns = probes(size, PROBES, real).astype(vectors.dtype)
    image = matmul(vectors.conj().T, matmul(vectors, columns))
    error = jnp.linalg.norm(image - columns)
    # Those of LAPACK are off by a few eps √k, those of a GPU by more.
    limit = 1e3 * float(jnp.finfo(real).eps) * math.sqrt(size)
    return error <= limit  # not for NaN
