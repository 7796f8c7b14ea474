"""How large the compiled gradients are, so that they do not grow unnoticed."""

import jax
import pytest

from benchmarks.latency import programs, size_of


PROGRAMS = programs()
# Instructions of the optimised program, with a margin of some five per cent. Fewer means
# to lower the number in the same commit.
MOST = {
    "LU": 430,
    "Cholesky": 230,
    "Triangular": 210,
    "QR, tall": 300,
    "QR, wide": 310,
    "CholeskyQR / QR": 560,
    "Normal(Cholesky)": 360,
    "SVD": 420,
    "PivotedQR / SVD": 630,
    "CG": 1350,
    "Normal(CG)": 1850,
    "GMRES": 1770,
    "BiCGStab": 1310,
    "LSMR": 4500,
    "lx.LU": 430,
    "lx.QR": 300,
    "lstsq / SVD, solve": 460,
    "lstsq / jnp.linalg.lstsq": 630,
    "varpro": 1460,
    "varpro and statistics": 2220,
    "gradient of varpro": 2660,
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
