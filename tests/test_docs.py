"""The Python code blocks of README and documentation run, and print what they say."""

import ast
import contextlib
import io
import pathlib
import re
import types
from importlib.util import find_spec

import jax
import pytest

import pseudojvp


_ROOT = pathlib.Path(__file__).parent.parent
_FENCE = re.compile(
    r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$"
    r"(?:\n\n```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_SECONDS = re.compile(r"\b\d+(\.\d+)? s\b")


def _blocks(page: pathlib.Path) -> list[tuple[str, str | None]]:
    """Each block with the lines above it left blank, for line numbers in tracebacks; and
    the text block right below it, which is what its last `print` prints."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for match in _FENCE.finditer(text):
        indent = len(match["indent"])
        code = "".join(line[indent:] or "\n" for line in match["code"].splitlines(True))
        code = "\n" * text.count("\n", 0, match.start("code")) + code
        blocks.append((code, match["output"]))
    return blocks


def _promised_output(code: str, output: str | None) -> list[str]:
    """The comments behind the calls of `print`, one a call, and the text below."""
    lines = code.splitlines()
    ends = [
        node.end_lineno
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]
    promised = [lines[end - 1].partition("  # ")[2] for end in sorted(ends)]
    if output is None or not promised or promised[-1]:
        return promised  # what is below is told by something else, as an error
    return promised[:-1] + output.splitlines()


_PAGES = [
    page
    for page in (_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md")))
    if _blocks(page)
]


# A page takes seven seconds and more, nearly all of it compiling.
@pytest.mark.default("index.md")
@pytest.mark.ci("*")
@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_code_blocks_of_a_page_run_in_order_and_print_what_they_say(page):
    namespace = {"__name__": page.stem}
    printed, promised = io.StringIO(), []
    for code, output in _blocks(page):
        if "from matfree" in code and find_spec("matfree") is None:
            break  # of the extra `[docs]`
        promised += _promised_output(code, output)
        with contextlib.redirect_stdout(printed), _users_promotion():
            exec(compile(code, str(page), "exec"), namespace)
    got = _SECONDS.sub("… s", printed.getvalue()).splitlines()  # times differ
    assert got == [_SECONDS.sub("… s", line) for line in promised]


@contextlib.contextmanager
def _users_promotion():
    """As JAX has it by default: these blocks are users' code, and not ours."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_pages_with_code_are_found():
    found = {page.name for page in _PAGES}
    assert found >= {"README.md", "index.md", "choosing.md", "faq.md"}


def test_every_public_name_has_an_entry_in_the_api_page():
    public = {
        name
        for name, value in vars(pseudojvp).items()
        if not (name.startswith("_") or isinstance(value, types.ModuleType))
    }
    api = (_ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"(?:^::: |`)pseudojvp\.(\w+)", api, re.MULTILINE))
    assert documented - {"_map"} == public  # the module of the primitive


def test_readme_has_the_two_set_up_commands_on_lines_of_their_own():
    lines = (_ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    example = 'pip install -e ".[examples]" && python examples/variable_projection.py'
    assert lines.count(example) == 1
    assert lines.count('pip install -e ".[tests]" && pytest') == 1


def test_ci_takes_the_test_command_from_the_readme():
    script = (_ROOT / ".ci" / "run").read_text(encoding="utf-8")
    [pattern] = re.findall(r"grep -m 1 -E '([^']+)' README\.md", script)
    readme = (_ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(pattern, readme, re.MULTILINE)
    assert found == ['pip install -e ".[tests]" && pytest']
