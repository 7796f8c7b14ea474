"""Finds the matrix in an ordinary differential equation from what the equation does.

Three coils couple through their fields, and each discharges a capacitor:

    L(i) di/dt = v − R i,    C dv/dt = −i.

L(i) is symmetric and diagonally dominant, and saturates with the currents i. Each step of
the integrator solves with it. A network makes a matrix of that kind from i,

    L = diag(d + Σⱼ |oᵢⱼ|) + O,    d > 0,  O symmetric,

and is trained on trajectories of the true circuit, through Diffrax and `linear_solve`:

    python examples/learned_inductances.py [--output learned_inductances.png]
"""

import argparse
import pathlib
import time

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from matplotlib.figure import Figure

import pseudojvp as pj


RESISTANCE = jnp.array([0.25, 0.15, 0.2])
CAPACITY = 1.0
TRAINING, HELD_OUT = 48, 8
SHORT, LONG = 1.2, 12.0  # units of time of a training and of a held-out trajectory
UPDATES = 900
PAIRS = jnp.triu_indices(3, 1)


def true_inductances(current):
    """Self-inductances fall as their core saturates, and so does the coupling."""
    own = jnp.array([1.0, 0.8, 1.2]) / (1 + 0.5 * current**2)
    coupling = jnp.array([0.3, -0.1, 0.2]) / (1 + 0.3 * jnp.sum(current**2))
    return dominant(0.4 + own, coupling)


def dominant(excess, couplings):
    """The symmetric, diagonally dominant matrix of these numbers."""
    upper = jnp.zeros((3, 3)).at[PAIRS].set(couplings)
    off_diagonal = upper + upper.T
    return jnp.diag(excess + jnp.sum(jnp.abs(off_diagonal), 1)) + off_diagonal


class Inductances(eqx.Module):
    network: eqx.nn.MLP

    def __init__(self, key):
        self.network = eqx.nn.MLP(3, 6, 24, 2, jnp.tanh, key=key)

    def __call__(self, current):
        out = self.network(current)
        return dominant(jax.nn.softplus(out[:3]) + 0.05, 0.5 * out[3:])


def slope(t, state, inductances):
    current, voltage = state
    L = lx.MatrixLinearOperator(inductances(current), lx.positive_semidefinite_tag)
    force = voltage - RESISTANCE * current
    return pj.linear_solve(L, force, pj.Cholesky()).value, -current / CAPACITY


def trajectory(inductances, start, end, count):
    """Currents and voltages at `count` times up to `end`."""
    times = jnp.linspace(0, end, count)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(slope), diffrax.Tsit5(), 0.0, end, 0.1, start, inductances,
        saveat=diffrax.SaveAt(ts=times), max_steps=int(10 * end) + 8,
    )  # fmt: skip
    return jnp.concatenate(solution.ys, axis=-1)


def starts(rng, count):
    return jnp.asarray(rng.uniform(-1.5, 1.5, (2, count, 3)))


@eqx.filter_jit
def trajectories(inductances, start, end, count):
    each = lambda current, voltage: trajectory(
        inductances, (current, voltage), end, count
    )
    return jax.vmap(each)(*start)


def train(model, start, data):
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, UPDATES))

    @eqx.filter_jit
    def update(model, moments):
        @eqx.filter_value_and_grad
        def loss(model):
            return jnp.mean(
                (trajectories(model, start, SHORT, data.shape[1]) - data) ** 2
            )

        value, gradient = loss(model)
        change, moments = optimiser.update(gradient, moments)
        return eqx.apply_updates(model, change), moments, value

    moments, losses = optimiser.init(eqx.filter(model, eqx.is_inexact_array)), []
    for _ in range(UPDATES):
        model, moments, value = update(model, moments)
        losses.append(float(value))
    return model, losses


def matrix_error(model, currents):
    """|L − L_true| / |L_true| in the Frobenius norm, the mean over these currents."""
    norm = lambda matrices: jnp.sqrt(jnp.sum(matrices**2, axis=(-2, -1)))
    true, made = jax.vmap(true_inductances)(currents), jax.vmap(model)(currents)
    return float(jnp.mean(norm(made - true) / norm(true)))


def draw(paths, errors, models, output: pathlib.Path) -> None:
    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    times = np.linspace(0, LONG, len(paths["true"]))
    for coil in range(3):
        kinds = {
            "true": {"color": f"C{coil}", "lw": 3, "alpha": 0.35},
            "before": {"color": f"C{coil}", "lw": 1, "ls": ":"},
            "after": {"color": f"C{coil}", "lw": 1.2},
        }
        for name, style in kinds.items():
            label = f"coil {coil + 1}" if name == "after" else None
            left.plot(times, paths[name][:, coil], label=label, **style)
    left.axvspan(0, SHORT, color="0.93", zorder=0)
    left.set(xlabel="time (shaded: as long as the training sees)", ylabel="current")
    left.set_title("Held out: wide true, dotted before", loc="left", fontweight="bold")
    left.legend(frameon=False, fontsize=8, ncols=3)
    line = jnp.linspace(-1.5, 1.5, 61)
    at = lambda x: jnp.array([0.0, 1.0, 0.0]) * x
    for name, style in {"true": "k-", "before": "C0:", "after": "C3--"}.items():
        matrices = jax.vmap(lambda x, name=name: models[name](at(x)))(line)
        middle.plot(line, matrices[:, 1, 1], style, label=name)
        middle.plot(line, matrices[:, 0, 1], style)
    middle.set(xlabel="current of coil 2", ylabel="L₂₂ (above) and L₁₂")
    middle.set_title("The matrix", loc="left", fontweight="bold")
    middle.legend(frameon=False, fontsize=8)
    right.bar(["before", "after"], errors, color=["0.7", "C3"], width=0.5)
    for place, error in enumerate(errors):
        right.text(place, error * 1.1, f"{100 * error:.1f} %", ha="center")
    right.set(yscale="log", ylabel="relative error of L", ylim=(min(errors) / 3, 2))
    right.set_title("Error at held-out currents", loc="left", fontweight="bold")
    for panel in (left, middle, right):
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=90)


def main(output: pathlib.Path) -> None:
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    start, held_out = starts(rng, TRAINING), starts(rng, HELD_OUT)
    data = trajectories(true_inductances, start, SHORT, 9)
    before = Inductances(jax.random.key(0))
    began = time.process_time()
    after, losses = train(before, start, data)
    seconds = time.process_time() - began
    models = {"true": true_inductances, "before": before, "after": after}
    paths = {
        name: trajectories(each, held_out, LONG, 121) for name, each in models.items()
    }
    currents = paths["true"][:, :, :3].reshape(-1, 3)
    errors = [matrix_error(models[name], currents) for name in ("before", "after")]
    gap = lambda name: float(jnp.sqrt(jnp.mean((paths[name] - paths["true"]) ** 2)))
    gaps = gap("before"), gap("after")
    print(f"{UPDATES} updates in {seconds:.0f} s of processor time.")
    print(
        f"Mean square error of the training data: {losses[0]:.1e}, then {losses[-1]:.1e}"
    )
    print(
        f"Relative error of L at held-out currents: {errors[0]:.1e}, then {errors[1]:.1e}"
    )
    print(
        f"Error of held-out paths, ten times as long: {gaps[0]:.1e}, then {gaps[1]:.1e}"
    )
    draw({name: path[0] for name, path in paths.items()}, errors, models, output)
    print(f"Wrote {output}.")

    assert errors[1] < 0.05 < 0.2 < errors[0], errors
    assert gaps[1] < 0.1 * gaps[0], gaps
    made = after(currents[7])
    rest = np.sum(np.abs(made), 1) - np.diag(made)
    assert np.all(np.diag(made) > rest), made  # dominant, whatever the network says


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("learned_inductances.png")
    )
    main(parser.parse_args().output)
