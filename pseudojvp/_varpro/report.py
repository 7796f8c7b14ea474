"""The report of a fit: what it has, and how it reads as text and as HTML."""

import dataclasses
import html
import math
from typing import NamedTuple

import numpy as np


_SHOWN_COEFFICIENTS = 20
_SHOWN_PAIRS = 5


class VarProEstimates(NamedTuple):
    """Parameters of one kind in a report, as columns: `pandas.DataFrame(e._asdict())`.

    - `name`: `(p,)`, strings.
    - `value`: `(p,)`, complex for complex coefficients.
    - `standard_deviation`: `(p,)`; NaN if it is not determined, or if `remark` says that
        the parameter was held.
    - `lower`, `upper`: `(p,)`, value ∓ t · standard deviation; NaN for complex numbers.
    - `relative_error`: `(p,)`, standard deviation over |value|.
    - `remark`: `(p,)`, strings: "at its lower bound", "at its upper bound", "fixed", or
        empty.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    t = jnp.linspace(0.0, 4.0, 50)
    decay = lambda rate, t: jnp.exp(-rate * t)[:, None]
    y = 2 * jnp.exp(-0.5 * t) + 0.01 * jnp.cos(40 * t)
    fit = pj.varpro(decay, y, jnp.array(0.4), t)
    estimates = fit.summary().theta
    print(estimates.name, estimates.value.round(2))  # ['theta'] [0.5]
    ```
    """

    name: np.ndarray
    value: np.ndarray
    standard_deviation: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    relative_error: np.ndarray
    remark: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class VarProReport:
    """What `VarProFit.summary()` returns: numbers on the host, which `str` prints.

    A notebook shows it as tables.

    - `theta`: [`pseudojvp.VarProEstimates`][] of θ, named after the pytree: `rates[0]`,
        `peak.width`; `theta[0]` if it is one array.
    - `coefficients`: those of c: `c[i]`, or `c[i, j]` for column j of the data; `c[d][i]`
        and `c[d][i, j]` for data set d of several. They are called `coefficients[i]` if θ
        has a name that starts with `c`.
    - `correlations`: the strongest correlations, as pairs of names with their value, the
        largest magnitude first; for complex coefficients the magnitude.
    - `confidence`, `absolute_sigma`: the arguments of `summary`.
    - `data`: the number of data with nonzero weight; complex ones count twice.
    - `parameters`: how many parameters were fitted, p = data − degrees of freedom; priors
        count as data here.
    - `degrees_of_freedom`, `chi_square` (‖residual‖²), `reduced_chi_square`.
    - `r_squared`: 1 − ‖W (data − fit)‖²/‖W (data − mean)‖², with the mean of each column
        of the data weighted by W².
    - `aic`, `bic`: −2 ln L + 2 P and −2 ln L + P ln(data). L is the largest likelihood of
        Gaussian data whose standard deviations are σ/W, with σ estimated as one more
        parameter, P = p + 1: −2 ln L = data (ln(2π chi_square/data) + 1) − Σ ln W², as
        R's `nls` has it. With `absolute_sigma`, −2 ln L is chi_square, and P = p. NaN
        with priors or another loss.
    - `rank`, `columns`: the rank of W Φ, the least of all columns of the data, and n;
        sums over several data sets. Columns whose coefficients are at a bound do not
        count for the rank.
    - `steps`, `polishing_steps`: the steps of the search.
    - `seconds`: wall time of the call of `varpro`, including compilation. `None` if it is
        not known: with `throw=False`, when the call returns before the fit is computed,
        and after the fit passed through `jax.jit`, `jax.vmap` or a file.
    - `successful`, and `failure`: why a fit failed, or "".
    - `warnings`: a list of sentences.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    t = jnp.linspace(0.0, 4.0, 50)
    decay = lambda rate, t: jnp.exp(-rate * t)[:, None]
    y = 2 * jnp.exp(-0.5 * t) + 0.01 * jnp.cos(40 * t)
    fit = pj.varpro(decay, y, jnp.array(0.4), t)
    report = fit.summary()  # `print` it
    print(report.data, report.parameters, f"{report.r_squared:.3f}")  # 50 2 1.000
    ```
    """

    theta: VarProEstimates
    coefficients: VarProEstimates
    correlations: list[tuple[str, str, float]]
    confidence: float
    absolute_sigma: bool
    data: int
    parameters: int
    degrees_of_freedom: int
    chi_square: float
    reduced_chi_square: float
    r_squared: float
    aic: float
    bic: float
    rank: int
    columns: int
    steps: int
    polishing_steps: int
    seconds: float | None
    successful: bool
    failure: str
    warnings: list[str]

    def __str__(self) -> str:
        lines = [*self._about(), "", *_aligned(self._table())]
        lines += [f"  {line}" for line in self._cut()]
        lines += ["", *self._measures()]
        if self.correlations:
            pairs = [(f"{a}, {b}", f"{value:.3f}") for a, b, value in self._strongest()]
            lines += ["", "Strongest correlations", *_aligned(pairs)]
        if self.warnings:
            lines += ["", "Warnings", *(f"  {warning}" for warning in self.warnings)]
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head, *rows = self._table()
        parts = [_paragraph(line) for line in self._about()]
        parts += [_html_table(rows, head)]
        parts += [_paragraph(line) for line in (*self._cut(), *self._measures())]
        if self.correlations:
            pairs = [(f"{a}, {b}", f"{value:.3f}") for a, b, value in self._strongest()]
            parts += [_html_table(pairs, ("strongest correlations", ""))]
        if self.warnings:
            items = "".join(f"<li>{html.escape(w)}</li>" for w in self.warnings)
            parts += [f"<p><b>Warnings</b></p><ul>{items}</ul>"]
        return "\n".join(parts)

    def _about(self) -> list[str]:
        state = "converged" if self.successful else "FAILED"
        taken = f"{self.steps} steps, {self.polishing_steps} to polish"
        if self.seconds is not None:
            taken += f", {self.seconds:.2g} s"
        return [
            f"Fit by variable projection: {state}",
            f"{self.data} data, {self.parameters} parameters, "
            f"{self.degrees_of_freedom} degrees of freedom; "
            f"rank {self.rank} of {self.columns}; {taken}",
        ]

    def _table(self) -> list[tuple[str, ...]]:
        interval = f"{100 * self.confidence:g} % interval"
        rows = [("", "value", "std. dev.", interval, "rel. error")]
        rows += _rows(self.theta, len(self.theta.name))
        return rows + _rows(self.coefficients, _SHOWN_COEFFICIENTS)

    def _cut(self) -> list[str]:
        more = len(self.coefficients.name) - _SHOWN_COEFFICIENTS
        return [f"... and {more} more in `coefficients`"] if more > 0 else []

    def _measures(self) -> list[str]:
        lines = [
            f"chi-square {self.chi_square:.6g}, reduced {self.reduced_chi_square:.6g}, "
            f"R² {self.r_squared:.6g}",
        ]
        if math.isnan(self.aic):
            return lines
        of = " (with σ = 1/weights)" if self.absolute_sigma else ""
        return [*lines, f"AIC {self.aic:.6g}, BIC {self.bic:.6g}{of}"]

    def _strongest(self) -> list[tuple[str, str, float]]:
        return self.correlations[:_SHOWN_PAIRS]


def _rows(estimates: VarProEstimates, most: int) -> list[tuple[str, ...]]:
    rows = []
    for name, value, deviation, lower, upper, relative, remark in list(
        zip(*estimates, strict=True)
    )[:most]:
        if remark:
            rows.append((name, f"{value:.6g}", "", remark, ""))
            continue
        if np.iscomplexobj(value) and not np.isnan(lower):
            value = value.real  # one of real data beside complex ones
        bounds = "" if np.iscomplexobj(value) else f"[{lower:.6g}, {upper:.6g}]"
        rows.append(
            (name, f"{value:.6g}", f"{deviation:.3g}", bounds, f"{100 * relative:.2g} %")
        )
    return rows


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Names to the left, the rest to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _paragraph(line: str) -> str:
    return f"<p>{html.escape(line)}</p>"


def _html_table(rows, head) -> str:
    def line(cells, tag):
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return (
        f"<table><thead><tr>{line(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"
    )
