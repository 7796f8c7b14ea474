"""The table and the picture of `benchmarks.sparse_solves`."""

import pathlib

from matplotlib.figure import Figure

from .sparse_cells import Cell


EXPLANATION = """\
The residual is relative. The error is that of the gradient with respect to the entries,
against a sine transform for Poisson's equation, and against SciPy's direct solver for the
others (so zero in its own row). Set-up is the preconditioner, and not in the times of the
solves; nor is compiling. Memory: what the compiled gradient asks for, and how far the
process rises when that runs for the first time.
"""


def as_markdown(cells: list[Cell]) -> str:
    """Returns a line for each cell."""
    columns = {
        "solver": lambda cell: cell.contender,
        "unknowns": lambda cell: f"{cell.unknowns:,}",
        "steps": lambda cell: "" if cell.steps is None else f"{cell.steps}",
        "set-up, s": lambda cell: _number(cell.setup_s),
        "compile, s": lambda cell: _number(cell.compile_s),
        "solve, s": lambda cell: _number(cell.forward_s),
        "with gradient, s": lambda cell: _number(cell.both_s),
        "residual": lambda cell: _number(cell.residual, ".0e"),
        "error of the gradient": lambda cell: _number(cell.error, ".0e"),
        "temporary, MiB": lambda cell: _number(cell.temporary_MiB),
        "peak rise, MiB": lambda cell: _number(cell.rise_MiB),
        "note": lambda cell: cell.note,
    }
    lines = []
    for problem in dict.fromkeys(cell.problem for cell in cells):
        lines += [f"\n**{problem}**\n", f"| {' | '.join(columns)} |"]
        lines.append("|---|" + "---:|" * (len(columns) - 2) + "---|")
        for cell in cells:
            if cell.problem == problem:
                row = " | ".join(column(cell) for column in columns.values())
                lines.append(f"| {row} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None, form: str = ".2g") -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if form == ".2g" and value >= 10 else f"{value:{form}}"


def draw(cells: list[Cell], output: pathlib.Path) -> None:
    """Time of a solve with its gradient, and memory, over the unknowns."""
    cells = [cell for cell in cells if cell.problem == "Poisson, 2-D"]
    colors = {
        "pseudojvp CG": "#3f51b5",
        "pseudojvp CG, amg": "#d81b60",
        "pseudojvp CG, chebyshev": "#7986cb",
        "pseudojvp SparseLU": "#00897b",
        "jax.scipy cg": "#f57c00",
        "jax.scipy bicgstab": "#ffb74d",
        "jax.scipy gmres": "#a1887f",
        "jax.experimental spsolve": "#6d4c41",
        "klujax": "#4db6ac",
        "SciPy splu": "#212121",
        "SciPy cg": "#757575",
        "torchsparsegradutils linear_cg": "#c62828",
    }
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = {"both_s": "solve and gradient (s)", "rise_MiB": "rise of peak memory (MiB)"}
    for panel, (field, title) in zip(panels, titles.items(), strict=True):
        for name, color in colors.items():
            points = [
                (cell.unknowns, getattr(cell, field))
                for cell in cells
                if cell.contender == name and getattr(cell, field)
            ]
            if points:
                ours = name.startswith("pseudojvp")
                style = {"lw": 2.4, "marker": "o"} if ours else {"lw": 1.4, "marker": "s"}
                dashes = "-" if ours else "--"
                panel.loglog(
                    *zip(*points, strict=True),
                    dashes,
                    color=color,
                    ms=4.5,
                    label=name,
                    **style,
                )
        panel.set_title(title, loc="left", fontweight="bold")
        panel.set_xlabel("unknowns")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle("2-D Poisson equation, to a relative residual of 1e-8", x=0.3)
    figure.savefig(output, dpi=90)
