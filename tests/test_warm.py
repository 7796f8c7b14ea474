"""Warm starts: a training loop whose solves and adjoint solves begin at the last ones."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import assert_close, count_primitive, jit
from test_low_rank import normal

import pseudojvp as pj


PSD = lx.positive_semidefinite_tag
SIZE, STEPS, RATE = 30, 6, 1e-3
CG = pj.CG(1e-11)
SOLVERS = {
    "CG": (CG, True),
    "MINRES": (pj.MINRES(1e-11, well_posed=True), True),
    "GMRES": (pj.GMRES(1e-11), False),
    "BiCGStab": (pj.BiCGStab(1e-11), False),
    "LSMR": (pj.LSMR(1e-11, well_posed=True), False),
    "lineax.CG": (lx.CG(1e-11, 1e-11), True),
}


class Model:
    """A(t) x = b, and w·x: the loss, whose adjoint solution is another vector."""

    def __init__(self, dtype=float, definite=True):
        shape = SIZE, SIZE
        first, second = (normal(seed, shape, dtype) / SIZE**0.5 for seed in (0, 1))
        self.first, self.second = jnp.asarray(first), jnp.asarray(second)
        self.vector, self.weights = (
            jnp.asarray(normal(seed, (SIZE,), dtype)) for seed in (2, 3)
        )
        self.definite, self.unit = definite, jnp.eye(SIZE, dtype=dtype)

    def matrix(self, t):
        moved = self.first + t.astype(self.first.dtype) * self.second
        if self.definite:
            return moved @ moved.conj().T + self.unit
        return moved + 4 * self.unit

    def operator(self, t):
        return lx.MatrixLinearOperator(self.matrix(t), PSD if self.definite else ())

    def loss(self, solver):
        def loss(t, warm):
            solution, warm = pj.warm_solve(
                self.operator(t), self.vector, warm, solver, throw=False
            )
            value = jnp.real(jnp.vdot(self.weights, solution.value))
            return value, warm, (solution.stats["num_steps"], solution.result._value)

        return loss

    def start(self, **kwargs):
        return pj.warm_start(self.operator(jnp.array(0.3)), **kwargs)

    def truth(self, t):
        """Value and gradient, dense."""
        solve = lambda t: jnp.linalg.solve(self.matrix(t), self.vector)
        return jax.value_and_grad(lambda t: jnp.real(jnp.vdot(self.weights, solve(t))))(t)

    def adjoint(self, t):
        return np.linalg.solve(self.matrix(t).conj().T, self.weights)


def trained(model, solver, memory=3, steps=STEPS):
    """(t, values, gradients, steps of the primal, results), and the last state."""
    step = pj.warm_value_and_grad(model.loss(solver), has_aux=True)

    def advance(carry, _):
        t, warm = carry
        value, gradient, warm, aux = step(t, warm)
        return (t - RATE * jnp.sign(gradient), warm), (t, value, gradient, *aux)

    @jit
    def train(t, warm):
        return jax.lax.scan(advance, (t, warm), length=steps)

    (_, warm), out = train(jnp.array(0.3), model.start(memory=memory))
    return out, warm


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [float, complex], ids=["real", "complex"])
def test_values_and_gradients_of_training_are_the_dense_ones(dtype, name):
    solver, definite = SOLVERS[name]
    model = Model(dtype, definite)
    (ts, values, gradients, steps, results), warm = trained(model, solver)
    want = jit(jax.vmap(model.truth))(ts)
    assert_close(values, want[0], 1e-7)
    assert_close(gradients, want[1], 1e-7)
    assert (results == lx.RESULTS.successful._value).all()
    assert 2 * steps[-1] < steps[0]
    # Newest first, in the last axis.
    for place in range(2):
        t = ts[-1 - place]
        solution = np.linalg.solve(model.matrix(t), model.vector)
        assert_close(warm.solutions[:, place], solution, 1e-7)
        assert_close(warm.adjoints[:, place], model.adjoint(t), 1e-7)


def counted(model, memory, steps=STEPS):
    """Products with A in the reverse pass of each step."""
    counts = []

    def operator(matrix):
        def mv(vector):
            jax.debug.callback(lambda _: counts.append(1), vector[0])
            return matrix @ vector

        structure = jax.ShapeDtypeStruct(matrix.shape[1:], matrix.dtype)
        return lx.FunctionLinearOperator(mv, structure, PSD)

    def loss(t, warm):
        a = operator(model.matrix(t))
        if memory == 0:
            x = pj.linear_solve(a, model.vector, CG, throw=False).value
        else:
            solution, warm = pj.warm_solve(a, model.vector, warm, CG, throw=False)
            x = solution.value
        return model.weights @ x, warm

    values = jit(lambda t, warm: loss(t, warm))
    both = jit(pj.warm_value_and_grad(loss))
    warm, t, products = model.start(memory=max(memory, 1)), jnp.array(0.3), []
    for _ in range(steps):
        counts.clear()
        jax.block_until_ready(values(t, warm))
        jax.effects_barrier()
        primal = len(counts)
        counts.clear()
        _, _, warm = jax.block_until_ready(both(t, warm))
        jax.effects_barrier()
        products.append((primal, len(counts) - primal))
        t = t + RATE
    return np.array(products)


@pytest.mark.slow  # three seconds
def test_adjoint_solves_begin_at_earlier_ones_too():
    cold, warm = counted(Model(), 0), counted(Model(), 3)
    # Beyond the first steps, with the three products of each first guess.
    assert (warm[3:, 0] < 0.7 * cold[3:, 0]).all()
    assert (warm[3:, 1] < 0.7 * cold[3:, 1]).all()


@pytest.mark.slow
def test_a_longer_memory_makes_better_guesses():
    steps = [trained(Model(), CG, memory=memory)[0][3][-1] for memory in (1, 2, 4)]
    assert steps[0] > steps[1] > steps[2]


@pytest.mark.slow
def test_a_batch_of_solves_has_a_batch_of_states():
    model = Model()
    vectors = jnp.asarray(normal(5, (3, SIZE), float))

    def loss(t, warm):
        solve = lambda b, warm: pj.warm_solve(model.operator(t), b, warm, CG, throw=False)
        solution, warm = jax.vmap(solve)(vectors, warm)
        return jnp.sum(solution.value @ model.weights), warm

    step = jit(pj.warm_value_and_grad(loss))
    warm, t = model.start(batch=3), jnp.array(0.3)
    for _ in range(2):
        _, gradient, warm = step(t, warm)
    want = jax.grad(
        lambda t: jnp.sum(jnp.linalg.solve(model.matrix(t), vectors.T).T @ model.weights)
    )(t)
    assert_close(gradient, want, 1e-8)
    assert warm.adjoints.shape == (3, SIZE, 3)
    for adjoint in warm.adjoints:
        assert_close(adjoint[:, 0], model.adjoint(t), 1e-8)


def _misled(model, factor):
    """A state of garbage of any size."""
    noise = jnp.asarray(factor * normal(7, (SIZE, 3), float))
    return pj.WarmStart(noise, noise)


@pytest.mark.ci("*")
@pytest.mark.parametrize("factor", [1e-300, 1.0, 1e12, 1e300, np.inf, np.nan])
def test_a_state_of_garbage_changes_nothing(factor):
    model, t = Model(), jnp.array(0.3)
    loss = model.loss(CG)
    value, gradient, _, aux = jit(pj.warm_value_and_grad(loss, has_aux=True))(
        t, _misled(model, factor)
    )
    want = model.truth(t)
    assert aux[1] == lx.RESULTS.successful._value
    assert_close(value, want[0], 1e-8)
    assert_close(gradient, want[1], 1e-8)


@pytest.mark.ci("*")
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-150])
def test_small_cotangents_are_solved_for_to_their_own_size(scale):
    """A guess of size one would leave its rounding in an adjoint solution of 1e-30."""
    model, t = Model(), jnp.array(0.3)
    _, warm = trained(model, CG)

    def loss(t, warm):
        value, warm, _ = model.loss(CG)(t, warm)
        return scale * value, warm

    _, gradient, _ = jit(pj.warm_value_and_grad(loss))(t, warm)
    np.testing.assert_allclose(gradient, scale * model.truth(t)[1], rtol=1e-8)


@pytest.mark.slow  # two seconds
def test_what_fails_is_told_as_from_a_cold_start():
    model, t = Model(), jnp.array(0.3)
    few = pj.CG(1e-11, max_steps=2)
    step = jit(pj.warm_value_and_grad(model.loss(few), has_aux=True))
    _, gradient, warm, aux = step(t, model.start())
    assert aux[1] == lx.RESULTS.max_steps_reached._value
    assert jnp.isnan(gradient)
    # And what comes after it is right.
    step = jit(pj.warm_value_and_grad(model.loss(CG), has_aux=True))
    _, gradient, _, aux = step(t, warm)
    assert aux[1] == lx.RESULTS.successful._value
    assert_close(gradient, model.truth(t)[1], 1e-8)


@pytest.mark.slow
def test_a_singular_system_is_not_made_successful_by_its_last_solution():
    ones = jnp.ones(3)
    a = lambda first: lx.MatrixLinearOperator(jnp.diag(ones.at[0].set(first)), PSD)
    _, warm = pj.warm_solve(a(1.0), ones, pj.warm_start(a(1.0)), CG)
    solution, _ = pj.warm_solve(a(0.0), ones, warm, CG, throw=False)
    assert solution.result != lx.RESULTS.successful
    with pytest.raises(eqx.EquinoxRuntimeError):
        pj.warm_solve(a(0.0), ones, warm, CG)


@pytest.mark.slow  # five seconds
def test_no_tangent_goes_from_step_to_step():
    """The derivative of the last value with respect to where training began."""
    model = Model()
    step = pj.warm_value_and_grad(model.loss(CG), has_aux=True)

    def last(step):
        def train(t):
            carry = t, model.start()
            for _ in range(3):
                value, gradient, warm, *_ = step(*carry)
                carry = t - RATE * gradient, warm
            return value

        return train

    def cold(t, warm):
        return *model.truth(t), warm

    got = jit(lambda t: (jax.jvp(last(step), (t,), (1.0,))[1], jax.grad(last(step))(t)))
    want = jit(jax.grad(last(cold)))(jnp.array(0.3))
    for derivative in got(jnp.array(0.3)):
        assert_close(derivative, want, 1e-7)


@pytest.mark.slow
def test_second_derivatives_are_those_of_the_dense_solve():
    model, t = Model(), jnp.array(0.3)
    _, warm = trained(model, CG)
    step = pj.warm_value_and_grad(model.loss(CG), has_aux=True)
    got = jit(lambda t: jax.jvp(lambda t: step(t, warm)[1], (t,), (1.0,))[1])(t)
    want = jax.grad(lambda t: model.truth(t)[1])(t)
    assert_close(got, want, 1e-7)


def test_a_gradient_takes_one_primal_and_one_adjoint_solve():
    model = Model()
    step = pj.warm_value_and_grad(model.loss(CG), has_aux=True)
    jaxpr = jax.make_jaxpr(lambda t, warm: step(t, warm)[1])(
        jnp.array(0.3), model.start()
    )
    assert count_primitive("linear_solve", jaxpr.jaxpr) == 2


@pytest.mark.slow
def test_vectors_and_states_may_be_pytrees():
    structure = jax.eval_shape(lambda: {"a": jnp.zeros(2), "b": jnp.zeros((3, 1))})

    def loss(scale, states):
        mv = lambda tree: {"a": 2 * scale * tree["a"], "b": 3 * tree["b"]}
        a = lx.FunctionLinearOperator(mv, structure, PSD)
        b = {"a": jnp.arange(1.0, 3.0), "b": jnp.ones((3, 1))}
        one, first = pj.warm_solve(a, b, states["first"], CG)
        two, second = pj.warm_solve(a, one.value, states["second"], CG)
        value = jnp.sum(one.value["a"]) + jnp.sum(two.value["a"] ** 2)
        return value, {"first": first, "second": second}

    state = pj.warm_start(lx.IdentityLinearOperator(structure))
    step = jit(pj.warm_value_and_grad(loss))
    value, gradient, states = step(jnp.array(1.0), {"first": state, "second": state})
    # 3 / (2 s) + 5 / (4 s²)²
    np.testing.assert_allclose(value, 1.5 + 5 / 16, rtol=1e-9)
    np.testing.assert_allclose(gradient, -1.5 - 4 * 5 / 16, rtol=1e-9)
    assert float(jnp.max(jnp.abs(states["second"].adjoints["a"][..., 0]))) > 0
