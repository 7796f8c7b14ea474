"""Asks which training images a network's mistakes come from: influence functions.

A 64-32-10 network learns scikit-learn's digits, to a minimum of

    Σᵢ wᵢ lossᵢ(θ) + λ/2 |θ|²,   wᵢ = 1/n.

Without image i the loss of a test image t changes, to first order, by g_tᵀ C⁻¹ gᵢ / n,
where g are gradients and C is the Gauss–Newton matrix plus λI. C⁻¹ g_t is one solve by
products alone: a Neumann series or conjugate gradients, plain or preconditioned by EKFAC,
the curvature that is diagonal in the eigenvectors of a Kronecker product for each layer
(George et al., NeurIPS 2018).

The script counts the products that each needs, against a Cholesky factorisation of all
2410 x 2410 entries, and compares the prediction with networks that are fitted again
without an image:

    python examples/influence_functions.py [--output influence_functions.png]
"""

import argparse
import pathlib
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import scipy.linalg
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import pseudojvp as pj


TRAINING = 1437  # of 1797 images
PENALTY = 0.02  # λ
EKFAC_DAMPING = 4 * PENALTY  # of the preconditioner: it overrates small curvatures less
TESTED = 4  # test images: those with the largest loss
TERMS = 10  # of the series, between two looks at its error


def with_ones(inputs):
    """The last column of the weights of a layer is its bias."""
    return jnp.concatenate([inputs, jnp.ones((len(inputs), 1))], axis=1)


def layers(theta, images, shifts):
    """The logits, and the inputs of both layers, whose outputs are shifted."""
    first = with_ones(images)
    hidden = with_ones(jnp.tanh(first @ theta["hidden"].T + shifts["hidden"]))
    logits = hidden @ theta["output"].T + shifts["output"]
    return logits, {"hidden": first, "output": hidden}


def network(theta, images):
    return layers(theta, images, {"hidden": 0.0, "output": 0.0})[0]


def losses_of(logits, labels):
    taken = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - taken


def losses(theta, data):
    images, labels = data
    return losses_of(network(theta, images), labels)


def objective(theta, problem):
    weights, data = problem
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(theta))
    return weights @ losses(theta, data) + PENALTY / 2 * squares


def curvature(theta, problem):
    """C, as an operator on trees like θ, positive definite."""
    weights, (images, labels) = problem
    return pj.gauss_newton_operator(
        lambda theta: network(theta, images),
        lambda logits: weights @ losses_of(logits, labels),
        theta,
        damping=PENALTY,
    )


class EKFAC(eqx.Module):
    """v -> Q ((Qᵀ v) / (s + μ)) of each layer, Q the Kronecker product of two bases."""

    left: dict
    right: dict
    divisor: dict

    def __call__(self, vector):
        def of_layer(left, right, divisor, matrix):
            return left @ ((left.T @ matrix @ right) / divisor) @ right.T

        return jax.tree.map(of_layer, self.left, self.right, self.divisor, vector)


@jax.jit
def ekfac(theta, images):
    """EKFAC's inverse of C, as a positive definite operator, by ten backward passes."""
    count = len(images)
    shifts = {"hidden": jnp.zeros((count, 32)), "output": jnp.zeros((count, 10))}
    logits, backward, inputs = jax.vjp(
        lambda shifts: layers(theta, images, shifts), shifts, has_aux=True
    )
    probabilities = jax.nn.softmax(logits)

    def of_class(label):
        """√p ∂loss/∂z, if this were the label: the outer products sum to ∂²loss/∂z²."""
        root = jnp.sqrt(probabilities[:, label])[:, None]
        return backward(root * (probabilities - jax.nn.one_hot(label, 10)))[0]

    slopes = jax.vmap(of_class)(jnp.arange(10))
    left, right, divisor = {}, {}, {}
    for name in theta:
        slope, entered = slopes[name], inputs[name]
        _, left[name] = jnp.linalg.eigh(jnp.einsum("cni,cnj->ij", slope, slope))
        _, right[name] = jnp.linalg.eigh(entered.T @ entered)
        of_slope = jnp.sum((slope @ left[name]) ** 2, axis=0)
        moments = of_slope.T @ (entered @ right[name]) ** 2 / count
        divisor[name] = moments + EKFAC_DAMPING
    return lx.FunctionLinearOperator(
        EKFAC(left, right, divisor),
        jax.eval_shape(lambda: theta),
        lx.positive_semidefinite_tag,
        closure_convert=False,
    )


@eqx.filter_jit
def train(start, problem):
    solver = optx.LBFGS(rtol=1e-5, atol=1e-7)
    found = optx.minimise(objective, solver, start, problem, max_steps=3000, throw=False)
    return found.value, found.stats["num_steps"]


@jax.jit
def dense_matrices(theta, problem):
    """C, and the Hessian of the objective: a product with each unit vector."""
    flat, unravel = ravel_pytree(theta)
    hessian = pj.hessian_operator(lambda theta: objective(theta, problem), theta)
    operators = curvature(theta, problem), hessian

    def column(unit):
        unit = unravel(unit)
        return [ravel_pytree(operator.mv(unit))[0] for operator in operators]

    return jax.lax.map(column, jnp.eye(flat.size), batch_size=64)


@jax.jit
def polish(theta, problem, preconditioner):
    """The minimum near θ by Newton's method, and the |gradient| that is left."""
    solver = pj.CG(rtol=1e-2, atol=0.0, preconditioner=preconditioner)
    norm_of = lambda tree: jnp.linalg.norm(ravel_pytree(tree)[0])
    going = lambda state: (norm_of(state[1]) > 1e-9) & (state[2] < 10)

    def step(state):
        theta, slope, steps = state
        hessian = pj.hessian_operator(
            lambda theta: objective(theta, problem),
            theta,
            tags=lx.positive_semidefinite_tag,  # near a minimum, or CG says `breakdown`
        )
        moved = pj.linear_solve(hessian, slope, solver, throw=False).value
        theta = jax.tree.map(jnp.subtract, theta, moved)
        return theta, jax.grad(objective)(theta, problem), steps + 1

    start = theta, jax.grad(objective)(theta, problem), 0
    theta, slope, _ = jax.lax.while_loop(going, step, start)
    return theta, norm_of(slope)


@jax.jit
def largest_eigenvalue(theta, problem, preconditioner):
    """That of P C, by 30 steps of the power iteration."""
    operator = lx.linearise(curvature(theta, problem))

    def step(_, state):
        vector = jax.tree.map(lambda leaf: leaf / state[1], state[0])
        image = operator.mv(vector)
        image = image if preconditioner is None else preconditioner.mv(image)
        return image, jnp.linalg.norm(ravel_pytree(image)[0])

    norm = jnp.linalg.norm(ravel_pytree(theta)[0])
    return jax.lax.fori_loop(0, 30, step, (theta, norm))[1]


@eqx.filter_jit
def series(theta, problem, vectors, exact, scale, preconditioner, products):
    """The largest relative error of the Neumann series after each `TERMS` products.

    Of the residual, `TERMS` terms of the series are the next ones of that of b.
    """
    solver = pj.Neumann(TERMS - 1, scale=scale, preconditioner=preconditioner)
    solve = pj.invert(curvature(theta, problem), solver).mv
    operator = lx.linearise(curvature(theta, problem))

    def step(sums, _):
        def of_vector(vector, total):
            rest = jax.tree.map(jnp.subtract, vector, operator.mv(total))
            return jax.tree.map(jnp.add, total, solve(rest))

        sums = jax.vmap(of_vector)(vectors, sums)
        return sums, errors_of(sums, exact)

    zero = jax.tree.map(jnp.zeros_like, vectors)
    return jax.lax.scan(step, zero, length=products // TERMS)[1]


@eqx.filter_jit
def solve(theta, problem, vectors, solver):
    def of_vector(vector):
        solution = pj.linear_solve(curvature(theta, problem), vector, solver, throw=False)
        return solution.value, solution.stats["num_steps"]

    return jax.vmap(of_vector)(vectors)


def errors_of(sums, exact):
    flat = jax.vmap(lambda tree: ravel_pytree(tree)[0])
    error = jnp.linalg.norm(flat(sums) - flat(exact), axis=1)
    return jnp.max(error / jnp.linalg.norm(flat(exact), axis=1))


@jax.jit
def predicted_changes(theta, data, solutions):
    """The change of the loss of each test image without each training image."""
    slope = lambda solution: jax.jvp(lambda t: losses(t, data), (theta,), (solution,))[1]
    return jax.vmap(slope)(solutions) / TRAINING


def draw(curves, predicted, refitted, pictures, output: pathlib.Path) -> None:
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=(1.15, 1, 0.9))
    panel = left.subplots()
    styles = {"plain": ("0.5", "tab:blue"), "EKFAC": ("k", "tab:red")}
    for (method, kind), (products, errors) in curves.items():
        color = styles[kind][method == "Neumann"]
        line = "-" if method == "Neumann" else "--"
        panel.loglog(products, errors, line, color=color, label=f"{method}, {kind}")
    panel.axhline(1e-2, color="0.8", lw=0.8, zorder=0)
    panel.axhline(1e-3, color="0.8", lw=0.8, zorder=0)
    panel.set(
        xlabel="products with the curvature", ylabel="relative error", ylim=(3e-4, 9)
    )
    panel.set_title("The inverse-curvature product", loc="left", fontweight="bold")
    panel.legend(frameon=False, loc="upper center", ncols=2)
    panel.spines[["top", "right"]].set_visible(False)

    panel = middle.subplots()
    ends = [1.1 * np.min([predicted, refitted]), 1.1 * np.max([predicted, refitted])]
    panel.plot(ends, ends, color="0.8", lw=1, zorder=0)
    for before, after in zip(predicted, refitted, strict=True):
        panel.plot(after, before, "o", ms=5, alpha=0.8)
    panel.set(xlabel="change of the test loss, refitted", ylabel="predicted")
    panel.set_title("One image left out", loc="left", fontweight="bold")
    panel.spines[["top", "right"]].set_visible(False)

    grid = right.subplots(3, 3)
    for row, (title, images, labels) in zip(grid, pictures, strict=True):
        for place, image, label in zip(row, images, labels, strict=False):
            place.imshow(image.reshape(8, 8), cmap="gray_r")
            place.set_title(label, fontsize=10)
        for place in row:
            place.set_axis_off()
        row[0].text(-0.15, 0.5, title, rotation=90, ha="right", va="center",
                    transform=row[0].transAxes)  # fmt: skip
    figure.savefig(output, dpi=80)


def main(output: pathlib.Path) -> None:
    jax.config.update("jax_enable_x64", True)
    began = time.perf_counter()
    rng = np.random.default_rng(0)
    digits = load_digits()
    order = rng.permutation(len(digits.data))
    images, labels = digits.data[order] / digits.data.std(), digits.target[order]
    data = images[:TRAINING], labels[:TRAINING]
    test = images[TRAINING:], labels[TRAINING:]
    weights = np.full(TRAINING, 1 / TRAINING)
    problem = weights, data
    start = {
        "hidden": rng.standard_normal((32, 65)) / 8,
        "output": rng.standard_normal((10, 33)) / 6,
    }

    theta, steps = train(start, problem)
    theta, gradient = polish(theta, problem, ekfac(theta, data[0]))
    matrix, hessian = (np.asarray(part) for part in dense_matrices(theta, problem))
    right = np.argmax(network(theta, test[0]), axis=1) == test[1]
    print(
        f"{len(matrix)} parameters, {int(steps)} steps of L-BFGS, |gradient| "
        f"{gradient:.0e}; {100 * np.mean(right):.1f} % of the test images are right; "
        f"{time.perf_counter() - began:.0f} s"
    )

    tested = np.argsort(-np.asarray(losses(theta, test)))[:TESTED]
    asked = test[0][tested], test[1][tested]
    vectors = jax.jacrev(losses)(theta, asked)
    unravel = jax.vmap(ravel_pytree(theta)[1])
    flat = np.asarray(jax.vmap(lambda tree: ravel_pytree(tree)[0])(vectors))
    factor = scipy.linalg.cho_factor(matrix)
    exact = unravel(jnp.asarray(scipy.linalg.cho_solve(factor, flat.T).T))

    preconditioners = {"plain": None, "EKFAC": ekfac(theta, data[0])}
    curves, needed = {}, {}
    for kind, preconditioner in preconditioners.items():
        most = {"plain": 1000, "EKFAC": 300}[kind]
        largest = largest_eigenvalue(theta, problem, preconditioner)
        arguments = vectors, exact, 1.8 / largest, preconditioner
        errors = np.asarray(series(theta, problem, *arguments, most))
        products = TERMS * np.arange(1, len(errors) + 1) - 1
        curves["Neumann", kind] = products, errors
        needed[kind] = [int(products[np.argmax(errors < tol)]) for tol in (1e-2, 1e-3)]
        assert errors[-1] < 1e-3, (kind, errors[-1])
        points = []
        for rtol in np.geomspace(0.3, 1e-4, 8):
            solver = pj.CG(rtol=jnp.array(rtol), atol=0.0, preconditioner=preconditioner)
            found, count = solve(theta, problem, vectors, solver)
            points.append((int(np.max(count)), float(errors_of(found, exact))))
        curves["CG", kind] = tuple(np.array(points).T)
    for tol, plain, better in zip((1e-2, 1e-3), *needed.values(), strict=True):
        print(
            f"Neumann series to {tol:.0e}: {plain} products, with EKFAC {better}, "
            f"{plain / better:.1f} times fewer"
        )
    for kind in preconditioners:
        count, error = (row[-1] for row in curves["CG", kind])
        print(f"CG, {kind}: {count:.0f} products to {error:.0e}")

    solver = pj.Neumann(
        needed["EKFAC"][1], scale=1.8 / largest, preconditioner=preconditioners["EKFAC"]
    )
    found, _ = solve(theta, problem, vectors, solver)
    error = float(errors_of(found, exact))
    predicted = np.asarray(predicted_changes(theta, data, found))
    by_cholesky = np.asarray(predicted_changes(theta, data, exact))
    factor = scipy.linalg.cho_factor(hessian)  # which is definite, at a minimum
    by_hessian = unravel(jnp.asarray(scipy.linalg.cho_solve(factor, flat.T).T))
    by_hessian = np.asarray(predicted_changes(theta, data, by_hessian))
    difference = np.linalg.norm(predicted - by_cholesky) / np.linalg.norm(by_cholesky)
    print(f"Influences: relative difference {difference:.1e} from those by Cholesky")

    ranked = np.argsort(predicted[0])
    left_out = np.concatenate(
        [ranked[:4], ranked[-4:], rng.choice(ranked[4:-4], 8, False)]
    )
    refitted, residuals, before = [], [], losses(theta, asked)
    for image in left_out:
        rest = weights * (np.arange(TRAINING) != image)
        moved, _ = train(theta, (rest, data))
        moved, residual = polish(moved, (rest, data), preconditioners["EKFAC"])
        refitted.append(np.asarray(losses(moved, asked) - before))
        residuals.append(float(residual))
    refitted = np.stack(refitted, axis=1)
    correlation, of_hessian = (
        np.corrcoef(part[:, left_out].ravel(), refitted.ravel())[0, 1]
        for part in (predicted, by_hessian)
    )
    print(
        f"{len(left_out)} images left out, {refitted.size} changes of a test loss: "
        f"correlation {correlation:.3f} with the prediction, {of_hessian:.3f} with that "
        "of the Hessian"
    )
    pictures = [
        ("asked", asked[0][:1], [f"a {asked[1][0]}"]),
        ("help", data[0][ranked[-3:][::-1]], data[1][ranked[-3:][::-1]]),
        ("harm", data[0][ranked[:3]], data[1][ranked[:3]]),
    ]
    draw(curves, predicted[:, left_out], refitted, pictures, output)
    print(f"Wrote {output} after {time.perf_counter() - began:.0f} s.")

    assert gradient < 1e-8, gradient
    assert max(residuals) < 1e-8, residuals
    for plain, better in zip(*needed.values(), strict=True):
        assert 5 * better <= plain, (plain, better)
    assert error < 1e-3, error
    assert difference < 1e-2, difference
    assert correlation > 0.9, correlation


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("influence_functions.png")
    )
    main(parser.parse_args().output)
