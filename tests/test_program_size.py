"""How large the compiled gradients are, so that they do not grow unnoticed."""

import jax
import pytest

from benchmarks.latency import programs, size_of


PROGRAMS = programs()
# Instructions of the optimised program, with a margin of some five per cent. Fewer means
# to lower the number in the same commit.
MOST = {
    "LU": 420,
    "Cholesky": 220,
    "Triangular": 200,
    "QR, tall": 510,
    "QR, wide": 520,
    "CholeskyQR / QR": 550,
    "Normal(Cholesky)": 340,
    "SVD": 520,
    "PivotedQR / SVD": 1540,
    "CG": 1390,
    "Normal(CG)": 1990,
    "GMRES": 1850,
    "BiCGStab": 1360,
    "LSMR": 4840,
    "lx.LU": 360,
    "lx.QR": 330,
    "lstsq / SVD, solve": 680,
    "lstsq / jnp.linalg.lstsq": 1920,
    "varpro": 1570,
    "varpro and statistics": 2450,
    "gradient of varpro": 2820,
}


@pytest.mark.default("LU", "QR, tall", "SVD", "CG")
@pytest.mark.ci("*")
@pytest.mark.optimised
@pytest.mark.skipif(
    jax.__version_info__[:2] != (0, 10), reason="another compiler makes other programs"
)
@pytest.mark.parametrize("name", MOST)
def test_instructions_of_a_program(name):
    program = PROGRAMS[name]
    assert size_of(program.ours, program).instructions <= MOST[name]


def test_each_program_of_the_benchmark_has_a_limit():
    assert set(MOST) == set(PROGRAMS)
