import gc
import zlib

import equinox as eqx
import jax
import pytest


jax.config.update("jax_enable_x64", True)

# Of eight cases of a grid, how many run by default, and how many more with the slow tests
# in CI, where all of them would take three quarters of an hour.
_BY_DEFAULT, _IN_CI = 1, 2


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items):
    """Marks as `slow` what of a `grid` is not in the sample that runs by default, and as
    `exhaustive` what is not in CI's either.

    The samples are drawn by the case (`[tall-real-QR]`), so that tests of one case, which
    share what they compile, stay together; they are the same on every machine.
    """
    for item in items:
        case = item.name.partition("[")[2]
        if not case or not item.get_closest_marker("grid"):
            continue
        turn = zlib.crc32(case.encode()) % 8
        if turn >= _BY_DEFAULT:
            item.add_marker(pytest.mark.slow)
        if turn >= _BY_DEFAULT + _IN_CI:
            item.add_marker(pytest.mark.exhaustive)


@pytest.fixture(scope="module", autouse=True)
def _free_compiled_programs():
    """Each takes memory maps, of which Linux allows a process 65,530."""
    yield
    jax.clear_caches()
    eqx.clear_caches()
    gc.collect()
