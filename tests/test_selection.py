"""What runs when: counted from the collection of the whole suite."""

import fnmatch
import pathlib

import claims
import hostile_cases
import pytest
import saddle_point_cases
from conftest import case_of, CHOICES
from problems import Problem, PROBLEMS
from test_higher_order import CLASSES


LABELS = """
    QR CholeskyQR SVD PivotedQR LU Cholesky Triangular Tridiagonal CG Neumann Landweber
    Normal(ours) Normal(PivotedQR) Normal(Cholesky) Normal(LU) Normal(QR) Normal(CG)
    Normal(SVD) Auto(True) Auto(None) Auto(False) Pinv(True) Pinv(False) Woodbury
    lineax.LU lineax.Cholesky lineax.QR lineax.SVD lineax.CG lineax.GMRES lineax.LSMR
    lineax.Normal(LU) lineax.Diagonal lineax.Triangular lineax.Tridiagonal
""".split()  # noqa: SIM905
RULE_CLASSES = """
    independent-columns independent-columns-and-rows entered-from-the-adjoint
    deficient-with-projection deficient neumann
""".split()  # noqa: SIM905
SOLVERS = {*LABELS, *claims.CLAIMS, *hostile_cases.CASES}
SOLVERS |= {rule.label for rule in CLASSES} | {
    case.label for case in saddle_point_cases.CASES
}
CLAIMS = ("solution", "jvp", "vjp", "second derivative")
IN_CI = {"lineax.LSMR", "FlexibleCG", "FlexibleGMRES"}  # loops in loops: ten seconds each
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
    if isinstance(of, str) and of in SOLVERS:
        return of
    # A solver that is a parameter itself is named in the id.
    names = (name.removeprefix("pseudojvp.") for name in case_of(item).split("-"))
    return next((name for name in names if name in SOLVERS - set(RULE_CLASSES)), None)


def shown(tiers, claim, *in_tiers):
    """The labels of the cases that show `claim` and run in `in_tiers`."""
    marks = {item: item.get_closest_marker("shows") for item in tiers}
    return {
        label(item)
        for item, when in tiers.items()
        if when in in_tiers and marks[item] and claim in marks[item].args
    }


@pytest.mark.parametrize("claim", CLAIMS)
def test_each_solver_has_a_default_case_of(claim, tiers):
    assert shown(tiers, claim, "default") >= set(LABELS) - IN_CI


@pytest.mark.parametrize("claim", [*(f"batched {claim}" for claim in CLAIMS), "failure"])
def test_core_solvers_have_a_default_case_and_all_one_in_ci_of(claim, tiers):
    problems = PROBLEMS.values()
    core = {each.label for each in problems if each.core and each.tier == "default"}
    assert len(core) > 10
    assert shown(tiers, claim, "default") >= core
    assert shown(tiers, claim, "default", "slow") >= set(LABELS)


@pytest.mark.parametrize("claim", CLAIMS)
def test_solvers_that_take_long_to_compile_have_a_case_in_ci_of(claim, tiers):
    assert shown(tiers, claim, "slow") >= IN_CI & set(LABELS)


def test_each_label_of_a_problem_is_counted():
    assert {problem.label for problem in PROBLEMS.values()} == set(LABELS)


@pytest.mark.parametrize("claim", ["jvp", "vjp"])
def test_each_krylov_solver_has_a_default_case_of(claim, tiers):
    assert shown(tiers, claim, "default") >= {"MINRES", "GMRES", "BiCGStab", "LSMR"}
    assert shown(tiers, claim, "slow") >= {"FlexibleCG", "FlexibleGMRES"}


def test_each_class_of_the_rule_has_a_third_derivative_by_default_or_in_ci(tiers):
    in_ci = {"deficient-with-projection", "neumann"}  # four and seven seconds
    assert shown(tiers, "third derivative", "default") == set(RULE_CLASSES) - in_ci
    assert shown(tiers, "third derivative", "slow") >= in_ci


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


ONLY_NIGHTLY = {
    # Half a minute each.
    "test_every_solver_and_its_derivatives_work_under_setting",
    "test_solvers_work_without_jit",
    "test_no_operation_of_a_good_solve_makes_a_nan",
    "test_third_derivative_along_a_path",
    "test_second_derivative_is_the_difference_of_the_first",
    "test_library_calls_of_the_gradient_of_many_fits_have_an_order",
    "test_gradients_of_ten_thousand_solves_end",
    # The full product of solvers, orders and modes, of which the classes of the rule, and
    # one program a solver, show the parts.
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
    return getattr(of, "shape", None)


def test_no_default_case_has_one_column_alone(tiers):
    shapes = {item.nodeid: _shape(item) for item in tiers if tiers[item] == "default"}
    assert {name for name, shape in shapes.items() if shape and shape[1] == 1} == set()


def test_each_pattern_chooses_a_case_of_its_test(tiers):
    """And each case that `default` names runs by default."""
    patterns, used, later = set(), set(), set()
    for item, when in tiers.items():
        for mark in map(item.get_closest_marker, ("default", "ci")):
            for pattern in mark.args if mark else ():
                choice = item.path.name, item.function.__name__, mark.name, pattern
                patterns.add(choice)
                if fnmatch.fnmatchcase(case_of(item), pattern):
                    used.add(choice)
                    if mark.name == "default" != when:
                        later.add(item.nodeid)
    assert (patterns - used, later) == (set(), set())
