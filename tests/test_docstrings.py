"""Every public name says what it takes and returns, with an example that runs."""

import inspect
import re

import jax
import pytest
from code_blocks import blocks, run

import pseudojvp
from pseudojvp._map import primitive


_PUBLIC = {name: getattr(pseudojvp, name) for name in pseudojvp.__all__}
_MOST_LINES = 10  # of an example, blank ones not counted

# What others return, or make: their fields are told instead of arguments.
_MADE_BY_OTHERS = {
    "EntriesSolution",
    "Factorised",
    "InverseLinearOperator",
    "SharedAndOwn",
    "WarmStart",
    "hermitian_tag",
    "linear_solve_p",
    *(name for name in _PUBLIC if name.startswith("VarPro")),
}
_CALLED = sorted(_PUBLIC.keys() - _MADE_BY_OTHERS)


def _docstring(name: str) -> str:
    """That of the primitive is that of its module."""
    owner = primitive if name == "linear_solve_p" else _PUBLIC[name]
    return inspect.cleandoc(owner.__doc__ or "")


def _example(name: str) -> list[tuple[str, str | None]]:
    return blocks(_docstring(name).partition("**Example:**\n\n")[2])


def _lacking(names, holds) -> list[str]:
    return [name for name in names if not holds(name)]


def test_every_public_name_has_one_example_of_at_most_ten_lines():
    def is_short(name):
        [(code, _)] = _example(name) or [("\n" * 99, None)]
        lines = [line for line in code.splitlines() if line.strip()]
        return 0 < len(lines) <= _MOST_LINES

    assert _lacking(_PUBLIC, is_short) == []


def test_every_example_prints_something_that_it_tells():
    def tells(name):
        return re.search(r"print\(.*\)  # ", _docstring(name)) is not None

    assert _lacking(_PUBLIC, tells) == []


# One to five seconds each, nearly all of it compiling.
@pytest.mark.default("linear_solve", "nnls", "sparse_lstsq")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", _PUBLIC)
def test_example_runs_in_the_default_precision_and_prints_what_it_says(name):
    with jax.enable_x64(False):
        got, promised = run(_example(name), name)
    assert got == promised


@pytest.mark.parametrize("section", ["Raises", "Arguments"])
def test_every_callable_has_the_section(section):
    def has(name):
        if section == "Arguments" and not inspect.signature(_PUBLIC[name]).parameters:
            return True  # `LU()`
        return re.search(rf"^\*\*(\w+, )?{section}(, \w+)?:\*\*", _docstring(name), re.M)

    assert _lacking(_CALLED, has) == []


def test_every_function_says_what_it_returns():
    functions = [name for name in _CALLED if inspect.isfunction(_PUBLIC[name])]
    assert _lacking(functions, lambda name: "Returns" in _docstring(name)) == []


def test_every_argument_is_named_unless_those_of_another_are():
    def names_all(name):
        text = _docstring(name)
        if re.search(r"\*\*Arguments(, Raises)?:\*\* (as|those of) ", text):
            return True
        parameters = inspect.signature(_PUBLIC[name]).parameters
        return all(f"`{p}`" in text for p in parameters if p not in ("args", "kwargs"))

    assert _lacking(_CALLED, names_all) == []


def test_every_callable_says_what_it_costs():
    words = r"\b[Cc]osts?\b|\bflops\b|\bFFTs\b|\b(products?|application) (with|of)\b"
    assert _lacking(_CALLED, lambda name: re.search(words, _docstring(name))) == []
