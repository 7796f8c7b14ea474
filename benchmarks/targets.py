"""What was asked of the library, and what a run of the benchmarks reached."""

import dataclasses

from . import report
from .harness import Pair, Row
from .results import Results


@dataclasses.dataclass(frozen=True)
class Target:
    """Ours is to be `asked` times faster than `peer` of `library`, or than any peer."""

    row: str
    asked: float
    library: str = ""
    peer: str = ""

    def line(self, results: Results) -> list[str]:
        row = results.row(self.row)
        first, fastest = row.ours[0], row.our_fastest
        peers = row.of(self.library, self.peer) if self.library else (row.fastest_peer,)
        if not peers:
            return [self.row, f"{self.library} `{self.peer}`, which hangs", "", "", ""]
        (peer,) = peers
        return [
            self.row,
            f"{peer.library} `{peer.name}`",
            f"{self.asked:g}",
            f"{peer.over(first):.2f} `{first.name}`",
            f"{peer.over(fastest):.2f} `{fastest.name}`",
        ]


_MANY = "64 right-hand sides"
_LX_QR = ("lineax", "QR()")
TARGETS = (
    Target(f"tall 2000 x 100, {_MANY}: solve", 25, *_LX_QR),
    Target(f"tall 2000 x 100, {_MANY}: solve", 1),
    Target(f"tall 2000 x 100, {_MANY}: gradient", 30, *_LX_QR),
    Target(f"tall 2000 x 100, {_MANY}: gradient", 1),
    Target("tall 2000 x 100, 32 tangents of A", 12, *_LX_QR),
    Target("tall 2000 x 100, 32 tangents of A", 3),
    Target(f"wide 100 x 2000, {_MANY}: gradient", 35, *_LX_QR),
    Target(f"wide 100 x 2000, {_MANY}: gradient", 1),
    Target("projected residual, 24 peaks on 1000 points: Jacobian", 5, *_LX_QR),
    Target("projected residual, 24 peaks on 1000 points: Jacobian", 1.7),
    Target("10,000 problems of 32 x 8: gradient", 2.5, *_LX_QR),
    Target("10,000 problems of 32 x 8: gradient", 1),
    Target("tall 2000 x 100: solve", 3, *_LX_QR),
    Target("tall 2000 x 100: solve", 1.4, "torch", "lstsq"),
    Target("square 200 x 200: solve", 0.9, "jax", "solve"),
    Target(
        "convolution 2006 x 2000, matrix-free: gradient", 1.5, "lineax", "Normal(CG())"
    ),
    Target("square 10 x 10, outside of `jit`: solve", 2, "lineax", "AutoLinearSolver()"),
)


def table(results: Results) -> str:
    """Ratios: the time (memory) of the peer over ours."""
    header = ("job", "against", "asked", "our first solver", "our fastest solver")
    lines = [target.line(results) for target in TARGETS]
    lines.append(_shapes(results.shapes))
    lines.append(_pairs("compile time of a gradient", 1, results.compile_s))
    lines.append(_pairs("memory of 64 right-hand sides", 10, results.memory_mib))
    return report.table(header, lines)


def _shapes(rows: list[Row]) -> list[str]:
    ratios = [row.of("lineax")[0].over(row.ours[0]) for row in rows]
    return _worst("single solves and gradients of any shape", 0.97, ratios)


def _pairs(job: str, asked: float, pairs: list[Pair]) -> list[str]:
    return _worst(job, asked, [pair.ratio for pair in pairs])


def _worst(job: str, asked: float, ratios: list[float]) -> list[str]:
    met = sum(ratio >= asked for ratio in ratios)
    reached = f"{min(ratios):.2f} at worst; {met} of {len(ratios)} rows reach it"
    return [job, "lineax, same solver", f"{asked:g}", reached, ""]
