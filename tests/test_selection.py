"""What runs when: counted from the collection of the whole suite."""

import fnmatch
import pathlib

import claims
import hostile_cases
import pytest
import saddle_point_cases
from claims import Cell
from conftest import case_of, CHOICES
from problems import Problem, PROBLEMS
from test_higher_order import CLASSES


LABELS = sorted({problem.label for problem in PROBLEMS.values()})
SOLVERS = {*LABELS, *claims.CLAIMS, *hostile_cases.CASES}
SOLVERS |= {rule.label for rule in CLASSES} | {
    case.label for case in saddle_point_cases.CASES
}
CLAIMS = ("solution", "jvp", "vjp", "second derivative")
EACH_LABEL = [*CLAIMS, *(f"batched {claim}" for claim in CLAIMS), "failure"]
# The names under which tests are parametrised by a solver or a problem.
SUBJECTS = ("problem", "cell", "case", "rule", "name")


@pytest.fixture(scope="module")
def tiers(pytestconfig):
    """When each test of the suite runs: "default", "slow" or "nightly"."""
    tiers = pytestconfig.stash[CHOICES]
    files = {item.path.name for item in tiers}
    if files != {path.name for path in pathlib.Path(__file__).parent.glob("test_*.py")}:
        pytest.skip("a part of the suite was collected")
    return tiers


def subject(item):
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return next((params[name] for name in SUBJECTS if name in params), None)


def label(item):
    """Of the solver, or of the class of the rule, if a test is about one."""
    of = subject(item)
    of = getattr(of, "label", of)
    return of if isinstance(of, str) and of in SOLVERS else None


def shown_by_default(tiers, claim):
    """The labels of the default cases of the tests that show `claim`."""
    marks = {item: item.get_closest_marker("shows") for item in tiers}
    return {
        label(item)
        for item, when in tiers.items()
        if when == "default" and marks[item] and claim in marks[item].args
    }


@pytest.mark.parametrize("claim", EACH_LABEL)
def test_each_solver_has_a_default_case_of(claim, tiers):
    assert shown_by_default(tiers, claim) >= set(LABELS)


def test_each_class_of_the_rule_has_a_third_derivative_by_default(tiers):
    classes = {rule.label for rule in CLASSES}
    assert shown_by_default(tiers, "third derivative") == classes


def test_each_label_of_each_file_runs_in_ci(tiers):
    labels = {(item.path.name, str(label(item))) for item in tiers if label(item)}
    in_ci = {
        (item.path.name, str(label(item)))
        for item, when in tiers.items()
        if when != "nightly"
    }
    assert labels - in_ci == set()


def test_each_test_has_a_case_in_ci(tiers):
    in_ci = {item.function for item, when in tiers.items() if when != "nightly"}
    without = {item.function.__name__ for item in tiers if item.function not in in_ci}
    assert without == ONLY_NIGHTLY


# The full product of solvers, orders and modes, of which the classes of the rule, and one
# program a solver, show the parts.
ONLY_NIGHTLY = {
    "test_second_derivative_by_jvp_of_vjp",
    "test_second_derivative_by_vjp_of_vjp",
    "test_tangents_with_respect_to_operator_alone",
    "test_tangents_with_respect_to_vector_alone",
    "test_third_derivative_by_jvp_of_vjp_of_jvp",
    "test_third_derivative_by_vjp_of_vjp_of_vjp",
    "test_third_tangent",
    "test_vjp_is_transpose_of_jvp_in_a_direction_off_the_path",
}


def _shape(item):
    """Of A, if the test says what it is about."""
    of = subject(item)
    if isinstance(of, Problem):
        return of.path.left.shape[1], of.path.right.shape[2]
    return of.shape if isinstance(of, Cell) else None


def test_no_default_case_has_one_column_alone(tiers):
    shapes = {item.nodeid: _shape(item) for item in tiers if tiers[item] == "default"}
    assert {name for name, shape in shapes.items() if shape and shape[1] == 1} == set()


def test_no_pattern_is_stale(tiers):
    """Each pattern of a mark matches a case of a test that the mark is on."""
    choices = [
        (mark.name, pattern, case_of(item))
        for item in tiers
        for name in ("default", "ci")
        for mark in item.iter_markers(name)
        for pattern in mark.args
    ]
    used = {c[:2] for c in choices if fnmatch.fnmatchcase(c[2], c[1])}
    assert {choice[:2] for choice in choices} - used == set()
