"""How does the cost grow with columns, rows, right-hand sides and tangents (ms)?"""

import dataclasses
from collections.abc import Callable

from . import contenders, dense
from .harness import Workload


@dataclasses.dataclass(frozen=True)
class Panel:
    """One picture: the same program for growing problems.

    - `axis`: what grows, and `title` the rest.
    - `problem`, `program`, `reference`, `may_hang`: of the workload; the problem is made
        from a size.
    """

    title: str
    axis: str
    sizes: tuple[int, ...]
    problem: Callable
    program: Callable
    reference: Callable
    may_hang: tuple[str, ...] = ()

    def name(self, size: int) -> str:
        return f"{self.title}, {self.axis} {size}"

    def workload(self, size: int) -> Workload:
        return Workload(
            self.name(size),
            lambda: self.problem(size),
            self.reference,
            contenders.solvers(
                self.program, contenders.FULL_RANK, may_hang=self.may_hang
            ),
        )


_GRADIENT = {"program": dense.gradient, "reference": dense.reference_gradient}

panels = (
    Panel(
        "gradient, 1000 rows",
        "columns",
        (4, 16, 64, 256),
        lambda cols: dense.random_problem(1000, cols),
        **_GRADIENT,
    ),
    Panel(
        "gradient, 20 columns",
        "rows",
        (40, 400, 4000, 40000),
        lambda rows: dense.random_problem(rows, 20),
        **_GRADIENT,
    ),
    Panel(
        "gradient, 1000 x 50",
        "right-hand sides",
        (1, 8, 64, 256),
        lambda count: dense.random_problem(1000, 50, count=count),
        program=dense.gradient_many,
        reference=dense.reference_gradient,
        may_hang=contenders.MAY_HANG,
    ),
    Panel(
        "tangents of A, 1000 x 50",
        "tangents",
        (1, 8, 32, 128),
        lambda count: dense.tangents_problem(1000, 50, count),
        program=dense.tangents,
        reference=dense.reference_tangents,
        may_hang=contenders.MAY_HANG,
    ),
)

workloads = tuple(panel.workload(size) for panel in panels for size in panel.sizes)
