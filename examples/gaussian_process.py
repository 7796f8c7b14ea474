"""Fits a Gaussian process by its marginal likelihood: one factorisation for all of it.

For data y at points t with the covariance K(θ), the logarithm of the likelihood is

    log p(y | θ) = −½ yᵀ K⁻¹ y − ½ log det K − ½ n log 2π.

`pseudojvp.factorise` gives K⁻¹y and log det K from one Cholesky factorisation, and their
gradient with respect to θ from the same factors; so do mean and variance of a prediction.
The script finds amplitude, length and noise by BFGS, compares likelihood and gradient
with NumPy's, and draws the fit:

    python examples/gaussian_process.py [--output gaussian_process.png]
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from matplotlib.figure import Figure

import pseudojvp as pj


COUNT = 300
TRUE = {"amplitude": 1.0, "length": 0.6, "noise": 0.2}
NAMES = tuple(TRUE)


def covariance(first, second, theta):
    """That of Matérn, of smoothness 3/2."""
    amplitude, length, _ = jnp.exp(theta)
    distance = np.sqrt(3) * jnp.abs(first[:, None] - second[None]) / length
    return amplitude**2 * (1 + distance) * jnp.exp(-distance)


def factors(theta, times):
    noise = jnp.exp(theta[2])
    matrix = covariance(times, times, theta) + noise**2 * jnp.eye(len(times))
    operator = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
    return pj.factorise(operator, pj.Cholesky())


def loss(theta, inputs):
    """−log p(y | θ)."""
    times, data = inputs
    factorised = factors(theta, times)
    constant = 0.5 * len(data) * np.log(2 * np.pi)
    quadratic = 0.5 * data @ factorised.solve(data)
    return quadratic + 0.5 * factorised.slogdet().logabsdet + constant


@jax.jit
def predict(theta, times, data, where):
    """Mean and standard deviation of the process at other points."""
    factorised = factors(theta, times)
    cross = covariance(where, times, theta)
    mean = cross @ factorised.solve(data)
    solved = jax.vmap(factorised.solve)(cross)
    variance = jnp.exp(theta[0]) ** 2 - jnp.sum(cross * solved, axis=1)
    return mean, jnp.sqrt(variance)


@jax.jit
def fit(start, times, data):
    method = optx.BFGS(rtol=1e-8, atol=1e-8)
    solution = optx.minimise(loss, method, start, (times, data), max_steps=200)
    return solution.value, solution.stats["num_steps"]


def numpy_loss(theta, times, data):
    matrix = np.asarray(covariance(times, times, theta))
    matrix = matrix + np.exp(theta[2]) ** 2 * np.eye(len(times))
    _, logabsdet = np.linalg.slogdet(matrix)
    quadratic = data @ np.linalg.solve(matrix, data)
    return 0.5 * (quadratic + logabsdet + len(data) * np.log(2 * np.pi))


def draw(times, data, clean, where, mean, deviation, output: pathlib.Path) -> None:
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(times, data, s=8, color="0.6", label="data")
    band = mean - 1.96 * deviation, mean + 1.96 * deviation
    axes.fill_between(where, *band, color="tab:red", alpha=0.3, lw=0, label="95 %")
    axes.plot(where, mean, color="tab:red", lw=1.5, label="mean")
    axes.plot(where, clean, "k--", lw=1, label="drawn from the process")
    axes.set(xlabel="t", ylabel="y", xlim=(where[0], where[-1]))
    axes.set_title(
        "A Gaussian process by its marginal likelihood", loc="left", fontweight="bold"
    )
    axes.legend(frameon=False, ncols=4, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=90)


def main(output: pathlib.Path) -> None:
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    true = jnp.log(jnp.array(list(TRUE.values())))
    # A gap in the data, and points where the process is drawn and compared.
    times = np.sort(np.concatenate([rng.uniform(0, 5, 200), rng.uniform(6.5, 10, 100)]))
    where = np.linspace(0, 10, 400)
    points = np.concatenate([times, where])
    drawn = np.asarray(covariance(points, points, true)) + 1e-10 * np.eye(len(points))
    drawn = np.linalg.cholesky(drawn) @ rng.standard_normal(len(points))
    data = drawn[:COUNT] + TRUE["noise"] * rng.standard_normal(COUNT)
    clean = drawn[COUNT:]

    start = jnp.log(jnp.array([0.3, 2.0, 0.5]))
    value, gradient = jax.jit(jax.value_and_grad(loss))(start, (times, data))
    step = 1e-5
    differences = [
        (numpy_loss(start + h, times, data) - numpy_loss(start - h, times, data))
        / (2 * step)
        for h in step * np.eye(3)
    ]
    of_value = abs(float(value) / numpy_loss(start, times, data) - 1)
    of_gradient = np.abs(gradient / np.array(differences) - 1).max()
    print(
        f"−log p at the start: {value:.4f}, {of_value:.0e} from NumPy's; its gradient "
        f"{of_gradient:.0e} from central differences"
    )
    began = time.perf_counter()
    theta, steps = jax.block_until_ready(fit(start, times, data))
    seconds = time.perf_counter() - began
    final = numpy_loss(theta, times, data)
    print(f"BFGS: {int(steps)} steps, {seconds:.1f} s with compiling, −log p {final:.4f}")
    for name, found, was in zip(NAMES, np.exp(theta), TRUE.values(), strict=True):
        print(f"  {name}: {found:.3f}, drawn with {was}")
    mean, deviation = map(np.asarray, predict(theta, times, data, where))
    inside = np.mean(np.abs(mean - clean) < 1.96 * deviation)
    print(f"{100 * inside:.0f} % of the process are within its 95 % band")
    draw(times, data, clean, where, mean, deviation, output)
    print(f"Wrote {output}.")

    assert of_value < 1e-10, of_value
    assert of_gradient < 1e-5, of_gradient
    assert final < numpy_loss(true, times, data), final
    assert abs(np.exp(theta[2]) / TRUE["noise"] - 1) < 0.15, theta
    assert 0.85 < inside <= 1, inside


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("gaussian_process.png")
    )
    main(parser.parse_args().output)
