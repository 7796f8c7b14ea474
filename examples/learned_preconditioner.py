"""Trains a network that makes preconditioners, and lets others compete with it.

Heat flows through a square of rough conductivity, exp(1.5 g) for a Gaussian field g: a
sparse, symmetric positive definite system for each square. `PreconditionerNetwork` makes

    P = S (G Gᵀ + ε I) S,    S = diag(A)^-½,

with G on the pattern of A. It is trained on 64 squares of 32 x 32, by the residual that
30 steps of conjugate gradients leave, and asked for 16 others, and for 64 x 64:

    python examples/learned_preconditioner.py [--output learned_preconditioner.png]
"""

import argparse
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from diffusion import (
    conductivity,
    entries,
    LARGE,
    measure,
    operator,
    problems,
    RTOL,
    SIDE,
    STEPS,
    train,
)
from matplotlib.figure import Figure

import pseudojvp as pj


TRAINING, HELD_OUT, UPDATES = 64, 16, 150


def contenders(network):
    """From A to a preconditioner, or a solver of its own; within one compiled solve."""
    untrained = pj.PreconditionerNetwork(key=jax.random.key(0))
    return {
        "none": lambda A: None,
        "Jacobi": pj.jacobi,
        "Chebyshev, degree 3": lambda A: pj.chebyshev(A, 3),
        "network, untrained": untrained,
        "network": network,
        "incomplete Cholesky": pj.incomplete_cholesky,
        "incomplete Cholesky, 3 sweeps": lambda A: pj.incomplete_cholesky(A, sweeps=3),
    }


def compare(network, rng):
    """The table, and a curve of each at 32 x 32."""
    table, curves = {}, {}
    for side, count in ((SIDE, HELD_OUT), (LARGE, 4)):
        data, vectors = problems(rng, count, side)
        for name, setup in {**contenders(network), "AMG": None}.items():
            few = 3 if setup is None else count  # each hierarchy is compiled anew
            steps, times, curve = measure(setup, data[:few], vectors[:few], side)
            table[name, side] = steps, *times
            if side == SIDE:
                curves[name] = curve
    return table, curves


def report(table):
    print(
        "| preconditioner | 32 x 32: steps | set-up + solve, ms | 64 x 64: steps | ms |"
    )
    print("|---|---|---|---|---|")
    for name in dict.fromkeys(name for name, _ in table):
        cells = []
        for side in (SIDE, LARGE):
            steps, setup, solve = table[name, side]
            cells += [f"{steps:.1f}", f"{setup:.1f} + {solve:.1f}"]
        print(f"| {name} | " + " | ".join(cells) + " |")


def spectrum(A, P):
    """Eigenvalues of P A."""
    root = np.linalg.cholesky(P.as_matrix())
    return np.linalg.eigvalsh(root.T @ np.asarray(A.as_matrix()) @ root)


def draw(spectra, curves, field, output: pathlib.Path) -> None:
    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    image, middle, right = figure.subplots(1, 3, width_ratios=(0.85, 1, 1.35))
    shown = image.imshow(np.log10(field), cmap="magma", extent=(0, 1, 0, 1))
    figure.colorbar(shown, ax=image, label="log₁₀ of the conductivity", shrink=0.8)
    image.set_title("A held-out square", loc="left", fontweight="bold")
    image.set(xticks=(0, 1), yticks=(0, 1))
    for name, color in (("Jacobi", "C1"), ("network", "C3")):
        values = spectra[name]
        kappa = values[-1] / values[0]
        middle.semilogy(
            np.arange(len(values)), values / values[-1], color=color, lw=2,
            label=f"{name}, κ = {kappa:.0f}",
        )  # fmt: skip
    middle.set(xlabel="number of the eigenvalue", ylabel="λ / λ_max of P A")
    middle.set_title("Its spectrum", loc="left", fontweight="bold")
    middle.legend(frameon=False, fontsize=8, loc="lower right")
    names = ["none", "Jacobi", "network, untrained", "network", "incomplete Cholesky"]
    for number, name in enumerate([*names, "AMG"]):
        curve = curves[name]
        width = 2.4 if name == "network" else 1.3
        right.semilogy(
            1 + np.arange(len(curve)), curve, color=f"C{number}", lw=width, label=name
        )
    right.axhline(RTOL, color="0.5", lw=0.8, ls=":")
    right.set(
        xlabel="step", ylabel="‖r‖ / ‖b‖", xlim=(0, 1.6 * len(curves["Jacobi"])),
        ylim=(RTOL / 10, 30),
    )  # fmt: skip
    right.set_title("Conjugate gradients, 32 x 32", loc="left", fontweight="bold")
    right.legend(frameon=False, fontsize=8, loc="center", bbox_to_anchor=(0.82, 0.33))
    for panel in (middle, right):
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=90)


def main(output: pathlib.Path) -> None:
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    data, _ = problems(rng, TRAINING, SIDE)
    field = conductivity(np.random.default_rng(5), SIDE)
    network = pj.PreconditionerNetwork(key=jax.random.key(0))
    network, (first, last), seconds = train(network, jnp.asarray(data), rng, UPDATES)
    count = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_array)))
    print(
        f"{count} weights, {UPDATES} updates in {seconds:.0f} s of processor time: "
        f"{STEPS} steps leave {first:.1e} of b before, {last:.1e} after.\n"
    )

    table, curves = compare(network, rng)
    report(table)
    A = operator(jnp.asarray(entries(field)), SIDE)
    numbers = {"Jacobi": pj.jacobi(A), "network": network(A)}
    for name, P in numbers.items():
        print(
            f"{name}: condition number {pj.condition_number(A, P):.0f}, logarithm of "
            f"Kaporin's {pj.kaporin_number(A, P):.0f}"
        )
    spectra = {name: spectrum(A, P) for name, P in numbers.items()}
    draw(spectra, curves, field, output)
    print(f"Wrote {output}.")

    for side in (SIDE, LARGE):
        assert table["network", side][0] <= 0.4 * table["Jacobi", side][0], table
        assert table["network", side][0] < table["network, untrained", side][0], table
    assert seconds < 90, seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("learned_preconditioner.png")
    )
    main(parser.parse_args().output)
