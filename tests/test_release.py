"""What a release says of itself agrees, and what it needs has a lowest version."""

import itertools
import pathlib
import re
import subprocess
import sys
import tomllib

import pseudojvp


_ROOT = pathlib.Path(__file__).parent.parent
_FILE = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
_PROJECT = _FILE["project"]


def _found(pattern, file):
    text = (_ROOT / file).read_text(encoding="utf-8")
    return re.search(pattern, text, re.MULTILINE)[1]


def test_versions_agree():
    version = _PROJECT["version"]
    assert pseudojvp.__version__ == version
    assert _found(r"^version: (.*)$", "CITATION.cff") == version
    assert _found(r"^## \[?([\d.]+)", "CHANGELOG.md") == version


def test_citation_names_what_the_package_does():
    assert _found(r'^title: "(.*)"$', "CITATION.cff") == _PROJECT["name"]
    assert _found(r'^abstract: "(.*)\."$', "CITATION.cff") == _PROJECT["description"]
    assert _found(r"^license: (.*)$", "CITATION.cff") == _PROJECT["license"]
    [author] = _PROJECT["authors"]
    assert _found(r'^  - name: "(.*)"$', "CITATION.cff") == author["name"]


def test_lowest_versions_are_pinned_for_all_that_the_tests_need():
    run = subprocess.run(
        [sys.executable, _ROOT / ".ci" / "lowest.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    needed = _PROJECT["dependencies"] + _PROJECT["optional-dependencies"]["tests"]
    pinned = {requirement.replace(">=", "==") for requirement in needed}
    assert set(run.stdout.split()) == pinned


def test_extras_agree_on_the_lowest_versions():
    extras = _PROJECT["optional-dependencies"].values()
    every = {*_PROJECT["dependencies"], *itertools.chain(*extras)}
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in every}
    assert len(every) == len(names)
