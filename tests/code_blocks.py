"""The Python code in a text, run as a user would, and what it says that it prints.

`python tests/code_blocks.py README.md` runs those of a page.
"""

import ast
import contextlib
import io
import pathlib
import re
import sys

import jax


_FENCE = re.compile(
    r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$"
    r"(?:\n\n```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_SECONDS = re.compile(r"\b\d+(\.\d+)? s\b")


def blocks(text: str) -> list[tuple[str, str | None]]:
    """Each block with the lines above it left blank, for line numbers in tracebacks; and
    the text block right below it, which is what its last `print` prints."""
    found = []
    for match in _FENCE.finditer(text):
        indent = len(match["indent"])
        code = "".join(line[indent:] or "\n" for line in match["code"].splitlines(True))
        code = "\n" * text.count("\n", 0, match.start("code")) + code
        found.append((code, match["output"]))
    return found


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


@contextlib.contextmanager
def _users_promotion():
    """As JAX has it by default: these blocks are users' code, and not ours."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run(found: list[tuple[str, str | None]], name: str) -> tuple[list[str], list[str]]:
    """What the blocks print, run in order in one namespace, and what they say of it.

    The lines of each; without the seconds in them, which differ.
    """
    namespace = {"__name__": name}
    printed, promised = io.StringIO(), []
    for code, output in found:
        promised += _promised_output(code, output)
        with contextlib.redirect_stdout(printed), _users_promotion():
            exec(compile(code, name, "exec"), namespace)
    got = _SECONDS.sub("… s", printed.getvalue()).splitlines()
    return got, [_SECONDS.sub("… s", line) for line in promised]


if __name__ == "__main__":
    page = pathlib.Path(sys.argv[1])
    got, promised = run(blocks(page.read_text(encoding="utf-8")), page.name)
    assert got == promised, (got, promised)
    print(f"{page.name}: {len(got)} lines printed, as it says.")
