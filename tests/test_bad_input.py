"""Bad input is an error that names what was called, what came and what to do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


# Else the check of an annotation would come before the message.
pytestmark = pytest.mark.untyped

POSITIVE = lx.positive_semidefinite_tag
EYE = lx.MatrixLinearOperator(jnp.eye(2), POSITIVE)
TALL = lx.MatrixLinearOperator(jnp.ones((3, 2)))
UNTAGGED = lx.MatrixLinearOperator(jnp.eye(2))
ONES = jnp.ones(2)
CG = pj.CG(1e-6, 1e-6)
ENTRY_POINTS = {"linear_solve": lambda a: pj.linear_solve(a, ONES), "invert": pj.invert}
SOLVERS = {
    "QR": pj.QR(),
    "SVD": pj.SVD(),
    "CG": CG,
    "Neumann": pj.Neumann(3),
    "Normal-CG": pj.Normal(CG),
    "Normal-QR": pj.Normal(pj.QR()),
    "Normal-lx.Cholesky": pj.Normal(lx.Cholesky()),
    "Normal-lx.CG": pj.Normal(lx.CG(1e-6, 1e-6)),
    "AutoLinearSolver": pj.AutoLinearSolver(well_posed=True),
    "AutoLinearSolver-any": pj.AutoLinearSolver(well_posed=False),
    "AutoLinearSolver-None": pj.AutoLinearSolver(well_posed=None),
}


@pytest.mark.parametrize("call", ENTRY_POINTS.values(), ids=ENTRY_POINTS.keys())
class TestOperator:
    def test_nested_list_is_refused_by_its_type(self, call):
        with pytest.raises(TypeError, match=r"got a list. Pass a `lineax\.Abstract"):
            call([[1.0, 0.0], [0.0, 1.0]])

    def test_one_dimensional_array_is_refused_by_its_shape(self, call):
        with pytest.raises(ValueError, match=r"shape \(2,\).*\(rows, cols\)"):
            call(jnp.ones(2))

    def test_three_dimensional_array_is_refused_with_the_way_out(self, call):
        with pytest.raises(ValueError, match=r"shape \(4, 2, 2\).*jax\.vmap"):
            call(jnp.ones((4, 2, 2)))


def test_array_of_strings_is_refused_by_its_type():
    with pytest.raises(TypeError, match=r"no array of numbers"):
        pj.invert(np.array([["a", "b"], ["c", "d"]]))


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
class TestVector:
    def test_wrong_shape_is_an_error_with_both_structures(self, solver):
        with pytest.raises(ValueError, match=r"do not match.*shape=\(3,\).*shape=\(2,\)"):
            pj.linear_solve(EYE, jnp.ones(3), solver)

    def test_wrong_structure_is_an_error_with_both_structures(self, solver):
        with pytest.raises(ValueError, match=r"do not match.*\{'a'.*an operator that"):
            pj.linear_solve(EYE, {"a": ONES}, solver)

    def test_wrong_precision_is_an_error_with_both_dtypes(self, solver):
        with pytest.raises(ValueError, match=r"do not match.*float32.*float64"):
            pj.linear_solve(EYE, ONES.astype("float32"), solver)

    def test_complex_vector_of_a_real_operator_is_an_error(self, solver):
        with pytest.raises(ValueError, match=r"do not match.*complex128.*float64"):
            pj.linear_solve(EYE, ONES.astype(complex), solver)

    def test_shape_of_the_solution_is_no_shape_of_the_vector(self, solver):
        with pytest.raises(ValueError, match=r"do not match.*shape=\(2,\).*shape=\(3,\)"):
            pj.linear_solve(TALL, ONES, solver)


def test_vector_of_strings_is_refused_by_its_type():
    with pytest.raises(TypeError, match=r"vector=\.\.\.\)` got str, which is no array"):
        pj.linear_solve(EYE, "b")


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
class TestUnknownOption:
    options = {"preconditoner": EYE}  # noqa: RUF012
    message = r"unknown option\(s\) \['preconditoner'\]\. Options it takes"

    def test_is_refused_by_linear_solve(self, solver):
        with pytest.raises(ValueError, match=self.message):
            pj.linear_solve(EYE, ONES, solver, options=self.options)

    def test_is_refused_by_init(self, solver):
        with pytest.raises(ValueError, match=self.message):
            solver.init(EYE, self.options)

    def test_is_refused_beside_a_given_state(self, solver):
        state = solver.init(EYE, {})
        with pytest.raises(ValueError, match=self.message):
            pj.linear_solve(EYE, ONES, solver, options=self.options, state=state)

    def test_is_refused_by_invert(self, solver):
        with pytest.raises(ValueError, match=self.message):
            pj.invert(EYE, solver, options=self.options)

    def test_is_refused_within_lineax(self, solver):
        with pytest.raises(ValueError, match=self.message):
            lx.linear_solve(EYE, ONES, solver, options=self.options)


def test_unknown_option_is_refused_beside_the_state_of_a_solver_that_does_not_look():
    operator = lx.DiagonalLinearOperator(jnp.ones(3))
    solver = pj.AutoLinearSolver(True)
    state = solver.init(operator, {})
    with pytest.raises(ValueError, match=r"unknown option\(s\) \['y1'\]"):
        pj.linear_solve(operator, jnp.ones(3), solver, options={"y1": 0}, state=state)


@pytest.mark.parametrize("solver", [pj.QR(), pj.SVD()])
@pytest.mark.parametrize("key", ["preconditioner", "y0", "max_steps"])
def test_direct_solver_takes_no_option(solver, key):
    with pytest.raises(ValueError, match=rf"\['{key}'\]\. Options it takes: none"):
        pj.linear_solve(EYE, ONES, solver, options={key: ONES})


@pytest.mark.parametrize(
    ("solver", "way_out"),
    [
        (CG, "`CG` .*square.*Use `QR"),
        (pj.Neumann(3), "`Neumann` .*square.*Use `QR"),
        (pj.AutoLinearSolver(well_posed=True), r"non-square.*\(3, 2\).*well_posed=False"),
    ],
    ids=["CG", "Neumann", "AutoLinearSolver"],
)
def test_non_square_operator_is_refused_by_a_square_only_solver(solver, way_out):
    with pytest.raises(ValueError, match=way_out):
        pj.linear_solve(TALL, jnp.ones(3), solver)


def test_cg_refuses_an_operator_without_definiteness_tag():
    with pytest.raises(ValueError, match=r"definite.*Tag it with.*Normal\(CG"):
        pj.linear_solve(UNTAGGED, ONES, CG)


_BAD_PRECONDITIONERS = {
    "matrix": (jnp.eye(2), "preconditioner of type .*must be a linear operator"),
    "shape": (lx.MatrixLinearOperator(jnp.eye(3), POSITIVE), r"maps .*\(3,\).*must map"),
    "dtype": (
        lx.MatrixLinearOperator(jnp.eye(2, dtype="float32"), POSITIVE),
        "maps .*float32.*must map.*float64",
    ),
    "string": ("jacobi", "preconditioner of type str.*must be a linear operator"),
}


@pytest.mark.parametrize("name", _BAD_PRECONDITIONERS)
class TestPreconditioner:
    @pytest.mark.parametrize("solver", [CG, pj.Neumann(3), pj.Normal(CG)])
    def test_of_another_kind_is_refused_in_options(self, name, solver):
        preconditioner, message = _BAD_PRECONDITIONERS[name]
        options = {"preconditioner": preconditioner}
        with pytest.raises(ValueError, match=message):
            pj.linear_solve(EYE, ONES, solver, options=options)

    def test_of_another_kind_is_refused_as_a_field_of_cg(self, name):
        preconditioner, message = _BAD_PRECONDITIONERS[name]
        solver = pj.CG(1e-6, 1e-6, preconditioner=preconditioner)
        with pytest.raises(ValueError, match=message):
            pj.linear_solve(EYE, ONES, solver)

    def test_of_another_kind_is_refused_as_a_field_of_neumann(self, name):
        preconditioner, message = _BAD_PRECONDITIONERS[name]
        solver = pj.Neumann(3, preconditioner=preconditioner)
        with pytest.raises(ValueError, match=message):
            pj.linear_solve(EYE, ONES, solver)


def test_cg_refuses_a_preconditioner_not_declared_definite():
    options = {"preconditioner": UNTAGGED}
    with pytest.raises(ValueError, match=r"must be positive definite: tag"):
        pj.linear_solve(EYE, ONES, CG, options=options)


def test_cg_refuses_a_negative_definite_preconditioner():
    negative = lx.MatrixLinearOperator(-jnp.eye(2), lx.negative_semidefinite_tag)
    with pytest.raises(ValueError, match=r"must be positive definite: tag"):
        pj.linear_solve(EYE, ONES, CG, options={"preconditioner": negative})


def test_cg_that_may_be_singular_refuses_a_preconditioner_in_options():
    solver = pj.CG(1e-6, 1e-6, well_posed=False)
    with pytest.raises(ValueError, match=r"takes neither a preconditioner nor `y0`"):
        pj.linear_solve(EYE, ONES, solver, options={"preconditioner": EYE})


def test_cg_that_may_be_singular_refuses_a_preconditioner_as_a_field():
    with pytest.raises(ValueError, match=r"takes neither a preconditioner nor `y0`"):
        pj.CG(1e-6, 1e-6, well_posed=False, preconditioner=EYE)


def test_cg_that_may_be_singular_refuses_a_first_guess():
    solver = pj.CG(1e-6, 1e-6, well_posed=False)
    with pytest.raises(ValueError, match=r"takes neither a preconditioner nor `y0`"):
        pj.linear_solve(EYE, ONES, solver, options={"y0": ONES})


@pytest.mark.parametrize("solver", [CG, pj.Normal(CG)], ids=["CG", "Normal"])
@pytest.mark.parametrize(
    "y0", [jnp.ones(3), (ONES,), ONES.astype("float32")], ids=["shape", "tree", "dtype"]
)
def test_first_guess_of_another_structure_is_refused(solver, y0):
    with pytest.raises(ValueError, match=r"`y0` of structure.*structure of the solution"):
        pj.linear_solve(EYE, ONES, solver, options={"y0": y0})


@pytest.mark.parametrize("name", ["QR", "SVD", "CG", "Neumann", "Normal"])
@pytest.mark.parametrize("call", [pj.linear_solve, pj.invert])
def test_class_in_the_place_of_an_instance_is_refused(name, call):
    arguments = {pj.linear_solve: (EYE, ONES), pj.invert: (EYE,)}[call]
    with pytest.raises(TypeError, match=rf"{name}.*Pass an instance of a solver"):
        call(*arguments, getattr(pj, name))


@pytest.mark.parametrize("inner", [pj.QR, "cholesky", None])
def test_normal_refuses_an_inner_solver_that_is_none(inner):
    with pytest.raises(TypeError, match=r"inner_solver=.*Pass a solver"):
        pj.Normal(inner)


@pytest.mark.parametrize("solver", [pj.CG, pj.Neumann], ids=["CG", "Neumann"])
@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("value", [-1e-3, float("nan")])
def test_negative_tolerance_is_refused_by_name(solver, name, value):
    tolerances = {"rtol": 1e-3, "atol": 1e-3, name: value}
    with pytest.raises(ValueError, match=rf"{name}=\.\.\.\)` got .*non-negative"):
        solver(**tolerances)


@pytest.mark.untyped
@pytest.mark.parametrize("solver", [pj.LSMR, pj.Neumann], ids=["LSMR", "Neumann"])
@pytest.mark.parametrize("value", ["1e-3", 1e-3j])
def test_tolerance_that_is_no_real_number_is_refused(solver, value):
    with pytest.raises(TypeError, match=r"rtol=\.\.\.\)` got .*real numbers"):
        solver(rtol=value)


def test_cg_without_any_stopping_rule_is_refused():
    with pytest.raises(ValueError, match=r"never stop.*max_steps"):
        pj.CG(rtol=0, atol=0)


def test_cg_refuses_negative_max_steps():
    with pytest.raises(ValueError, match=r"max_steps=.*got -1"):
        pj.CG(1e-6, 1e-6, max_steps=-1)


def test_cg_refuses_to_stabilise_every_zero_steps():
    with pytest.raises(ValueError, match=r"stabilise_every=.*got 0"):
        pj.CG(1e-6, 1e-6, stabilise_every=0)


def test_neumann_refuses_fewer_than_zero_terms():
    with pytest.raises(ValueError, match=r"num_terms=\.\.\.\)` got -1.*at least zero"):
        pj.Neumann(num_terms=-1)


@pytest.mark.parametrize("value", [3.0, True, "3"])
def test_neumann_refuses_a_number_of_terms_that_is_no_integer(value):
    with pytest.raises(TypeError, match=r"num_terms=.*Pass a Python integer"):
        pj.Neumann(num_terms=value)


@pytest.mark.parametrize("value", ["yes", 2, -1])
def test_automatic_solver_refuses_another_well_posed(value):
    with pytest.raises(ValueError, match=r"well_posed=.*`True`, `False` or `None`"):
        pj.AutoLinearSolver(well_posed=value)


def test_errors_of_bad_input_come_at_trace_time():
    with pytest.raises(ValueError, match=r"do not match"):
        jax.eval_shape(lambda b: pj.linear_solve(UNTAGGED, b, pj.QR()).value, jnp.ones(3))


def test_gradient_for_a_tolerance_is_refused_by_name():
    def loss(rtol):
        return jnp.sum(pj.linear_solve(EYE, ONES, pj.CG(rtol, 1e-6)).value)

    with pytest.raises(RuntimeError, match=r"solver=.*cannot be autodifferentiated"):
        eqx.filter_grad(loss)(jnp.array(1e-6))
