import gc
import zlib

import equinox as eqx
import jax
import pytest


jax.config.update("jax_enable_x64", True)

# Of a grid of cases, what part runs by default: one case in so many.
_SAMPLE = 8


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items):
    """Marks as slow what of a `grid` is not in the sample that runs by default.

    The sample is drawn by the case (`[tall-real-QR]`), so that tests of one case, which
    share what they compile, stay together; it is the same on every machine.
    """
    for item in items:
        case = item.name.partition("[")[2]
        in_sample = not case or zlib.crc32(case.encode()) % _SAMPLE == 0
        if item.get_closest_marker("grid") and not in_sample:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def _free_compiled_programs():
    """Each takes memory maps, of which Linux allows a process 65,530."""
    yield
    jax.clear_caches()
    eqx.clear_caches()
    gc.collect()
