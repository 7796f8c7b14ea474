"""The Python code blocks of README and documentation run, and print what they say."""

import pathlib
import re
from importlib.util import find_spec
from itertools import takewhile

import pytest
from code_blocks import blocks, run

import pseudojvp


_ROOT = pathlib.Path(__file__).parent.parent
_PAGES = [
    page
    for page in (_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md")))
    if blocks(page.read_text(encoding="utf-8"))
]


# A page takes seven seconds and more, nearly all of it compiling.
@pytest.mark.default("index.md")
@pytest.mark.ci("*")
@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_code_blocks_of_a_page_run_in_order_and_print_what_they_say(page):
    found = blocks(page.read_text(encoding="utf-8"))
    if find_spec("matfree") is None:  # of the extra `[docs]`
        found = list(takewhile(lambda block: "from matfree" not in block[0], found))
    got, promised = run(found, page.name)
    assert got == promised


def test_pages_with_code_are_found():
    found = {page.name for page in _PAGES}
    assert found >= {"README.md", "index.md", "choosing.md", "faq.md"}


def test_every_public_name_has_one_entry_in_the_api_pages():
    pages = sorted((_ROOT / "docs" / "api").glob("*.md"))
    texts = {page.name: page.read_text(encoding="utf-8") for page in pages}
    overview = texts.pop("index.md")
    entries = re.compile(r"(?:^::: |^`)pseudojvp\.(\w+)", re.MULTILINE)
    documented = [name for text in texts.values() for name in entries.findall(text)]
    documented.remove("_map")  # the module of the primitive
    assert sorted(documented) == sorted(pseudojvp.__all__)
    listed = re.findall(r"\[`(\w+)`\]", overview)
    assert sorted(listed) == sorted({*documented} - {"hermitian_tag", "linear_solve_p"})


def test_docstrings_link_to_public_names_alone():
    """They stand on the pages of `api/`: a file beside `docs/index.md` is not there."""
    sources = (_ROOT / "pseudojvp").rglob("*.py")
    texts = {path.name: path.read_text(encoding="utf-8") for path in sources}
    assert len(texts) > 100
    link = re.compile(r"\]\([^)]*\.md|\]\[(?!pseudojvp\.|\])[a-z]+-")
    assert [name for name, text in texts.items() if link.search(text)] == []


def test_gallery_shows_every_example_that_ci_runs():
    script = (_ROOT / ".ci" / "run").read_text(encoding="utf-8")
    [listed] = re.findall(r"for example in ([\w\s\\]+); do", script)
    gallery = (_ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    shown = re.findall(r"`python examples/(\w+)\.py`", gallery)
    assert sorted(shown) == sorted(listed.replace("\\", " ").split())


def test_no_public_name_is_imported_from_a_folder_with_a_module_of_that_name():
    """The API page would have the module, and so nothing."""
    package = _ROOT / "pseudojvp"
    imported = re.findall(
        r"^ *from \.([\w.]+) import (\(.*?\)|.*?)$",
        (package / "__init__.py").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    modules = [
        package / folder.replace(".", "/") / f"{name}.py"
        for folder, names in imported
        for name in re.findall(r"\w+ as (\w+)", names)
    ]
    assert [path.name for path in modules if path.exists()] == []
    assert len(modules) > 50


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
