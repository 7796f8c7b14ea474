"""Diffusion with rough coefficients: systems, a network trained on them, and its steps.

What `learned_preconditioner.py` trains and compares, without the comparison.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax

import pseudojvp as pj


SIDE, LARGE = 32, 64
BATCH, STEPS = 4, 30
RTOL = 1e-8
POSITIVE = lx.positive_semidefinite_tag


def pattern(side):
    """Rows and columns of the five-point stencil: the diagonal, then the neighbours."""
    number = np.arange(side**2).reshape(side, side)
    pairs = [(number[:, :-1], number[:, 1:]), (number[:-1], number[1:])]
    pairs = [[end.ravel() for end in pair] for pair in pairs]
    row = np.concatenate([number.ravel(), *(end for a, b in pairs for end in (a, b))])
    col = np.concatenate([number.ravel(), *(end for a, b in pairs for end in (b, a))])
    return row, col


def conductivity(rng, side, length=0.1, sigma=1.5):
    """exp(sigma g) on the unit square, g of correlation length `length`."""
    frequency = np.fft.fftfreq(2 * side, 1 / side) / 2  # of a square of twice the side
    square = frequency[:, None] ** 2 + frequency**2
    taper = np.exp(-((np.pi * length) ** 2) * square)
    noise = np.fft.fft2(rng.standard_normal((2 * side, 2 * side)))
    field = np.fft.ifft2(noise * taper).real / np.sqrt(np.mean(taper**2))
    return np.exp(sigma * field[:side, :side])


def entries(conductance):
    """Those of −∇·(k ∇u), u = 0 on the boundary, by finite volumes, as `pattern`."""
    mean = lambda a, b: 2 * a * b / (a + b)
    padded = np.pad(conductance, 1, mode="edge")
    across = mean(padded[1:-1, :-1], padded[1:-1, 1:])
    down = mean(padded[:-1, 1:-1], padded[1:, 1:-1])
    for faces in (across.T, down):  # half a cell to the boundary
        faces[[0, -1]] *= 2
    diagonal = across[:, :-1] + across[:, 1:] + down[:-1] + down[1:]
    right, below = -across[:, 1:-1].ravel(), -down[1:-1].ravel()
    return np.concatenate([diagonal.ravel(), right, right, below, below])


def problems(rng, count, side):
    """Entries and right-hand sides."""
    data = [entries(conductivity(rng, side)) for _ in range(count)]
    return np.stack(data), rng.standard_normal((count, side**2))


def operator(data, side):
    """Indices are known when JAX traces, entries need not be."""
    return pj.SparseLinearOperator((data, *pattern(side), (side**2, side**2)), POSITIVE)


def train(network, data, rng, updates):
    """By Adam; the residuals at the first and last updates, and the processor time."""
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, updates))

    def log_residual(network, data, vector):
        A = operator(data, SIDE)
        solver = pj.LearnedCG(STEPS, preconditioner=network(A), history=True)
        _, _, stats = solver.compute(solver.init(A, {}), vector, {})
        return jnp.log(stats["residual_norms"][-1] / jnp.linalg.norm(vector))

    @eqx.filter_jit
    def update(network, moments, data, vectors):
        @eqx.filter_value_and_grad
        def loss(network):
            one = lambda data, vector: log_residual(network, data, vector)
            return jnp.mean(jax.vmap(one)(data, vectors))

        value, gradient = loss(network)
        change, moments = optimiser.update(gradient, moments)
        return eqx.apply_updates(network, change), moments, value

    moments = optimiser.init(eqx.filter(network, eqx.is_inexact_array))
    losses, began = [], time.process_time()
    for _ in range(updates):
        chosen = rng.choice(len(data), BATCH, replace=False)
        vectors = jnp.asarray(rng.standard_normal((BATCH, SIDE**2)))
        network, moments, value = update(network, moments, data[chosen], vectors)
        losses.append(float(value))
    ends = [float(np.exp(np.mean(part))) for part in (losses[:10], losses[-40:])]
    return network, ends, time.process_time() - began


def timed(function, *args):
    """What it returns, and the least of its times: another process may take a core."""
    times = [np.inf]
    while len(times) < 10 and sum(times[1:]) < 0.2:
        began = time.perf_counter()
        out = jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - began)
    return out, min(times)


def measure(setup, data, vectors, side):
    """Means of steps, of the time of set-up and solve in ms, and the residuals."""
    solver = pj.CG(RTOL, max_steps=5000, history=True)

    def solve(P, data, vector):
        options = {} if P is None else {"preconditioner": P}
        A = operator(data, side)
        return pj.linear_solve(A, vector, solver, options=options, throw=False)

    if setup is None:  # on the host
        prepare = lambda data: pj.amg(operator(np.asarray(data), side))
    else:
        prepare = eqx.filter_jit(lambda data: setup(operator(data, side)))
    solve = eqx.filter_jit(solve)
    times, steps, curves = [], [], []
    for repeat, (entry, vector) in enumerate(zip(data, vectors, strict=True)):
        entry, vector = jnp.asarray(entry), jnp.asarray(vector)
        if repeat == 0 or setup is None:
            jax.block_until_ready(solve(prepare(entry), entry, vector).value)
        P, setup_time = timed(prepare, entry)
        solution, solve_time = timed(solve, P, entry, vector)
        times.append((setup_time, solve_time))
        assert solution.result == lx.RESULTS.successful
        steps.append(int(solution.stats["num_steps"]))
        norms = np.asarray(solution.stats["residual_norms"])
        curves.append(norms[: steps[-1]] / np.linalg.norm(vector))
    return np.mean(steps), 1e3 * np.median(times, axis=0), curves[0]
