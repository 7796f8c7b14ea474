"""What the first fit of a model compiles and imports, up to its printed summary."""

import os
import re
import subprocess
import sys

import pytest


SCRIPT = """
import sys
import jax, optimistix
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_log_compiles", True)
import jax.numpy as jnp, numpy as np
import pseudojvp as pj

def decays(rates, times):
    return jnp.exp(-times[:, None] * rates)

times = np.linspace(0, 5, 60)
y = np.exp(-np.outer(times, [0.5, 3.0])) @ np.array([2.0, 1.0])
y += 0.01 * np.random.default_rng(0).standard_normal(60)
kind, early = sys.argv[1], set(sys.modules)
options = dict(weights=np.full(60, 100.0), f_scale=2.0) if kind == "weighted" else {}
fit = pj.varpro(decays, y, np.array([0.2, 1.0]), times, **options)
print(fit.summary(absolute_sigma=kind == "weighted"))
fit.predict(times)
print([name for name in ("matplotlib", "tqdm", "pyamg") if name in sys.modules])
ours = [name for name in sys.modules if name.startswith("pseudojvp.")]
print([name for name in ours if name.endswith(("_preconditioner", "batch", "warm"))])
"""


def first_answer(kind, folder):
    """What a new process prints, and the programs that it compiles or has kept."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind],
        capture_output=True,
        check=True,
        env=environment,
        text=True,
        timeout=300,
    )
    compiled = re.findall(r"Compiling jit\((\w+)\)", process.stderr)
    kept = re.findall(r"Persistent compilation cache hit for 'jit_(\w+)'", process.stderr)
    return process.stdout, compiled, kept


@pytest.fixture(scope="module", params=["plain", "weighted"])
def answers(request, tmp_path_factory):
    """Of the first process, and of one that finds the programs of the first."""
    folder = tmp_path_factory.mktemp("cache")
    return [first_answer(request.param, folder) for _ in range(2)]


@pytest.mark.slow  # two processes that compile
def test_a_fit_its_summary_and_its_bands_are_a_program_each(answers):
    (_, compiled, kept), _ = answers
    assert compiled == ["_fit", "_statistics", "_predict"]
    assert kept == []


@pytest.mark.slow  # see above
def test_the_next_process_compiles_nothing(answers):
    (printed, compiled, _), (again, _, kept) = answers
    assert kept == compiled
    number = re.compile(r"[\d.]+ s$", re.MULTILINE)
    assert number.sub("", printed) == number.sub("", again)


@pytest.mark.slow  # see above
def test_what_a_fit_does_not_need_is_not_imported(answers):
    (printed, _, _), _ = answers
    assert printed.splitlines()[-2:] == ["[]", "[]"]
