import functools
import importlib
import warnings
from types import ModuleType


def import_optional(module: str, caller: str, extra: str) -> ModuleType:
    """Imports a package of an extra at its first use, as `import_late` does."""
    try:
        return import_late(module)
    except ImportError as error:
        raise ImportError(
            f'`{caller}` needs the package {module}: `pip install "pseudojvp[{extra}]"`.'
        ) from error


@functools.cache
def import_late(module: str) -> ModuleType:
    """Imports a module, and leaves the filters of warnings alone.

    Not at the top of a module, for `import pseudojvp` must not pay for it, nor change
    what it changes: PyAMG and SciPy add to the filters of warnings.
    """
    with warnings.catch_warnings():
        return importlib.import_module(module)
