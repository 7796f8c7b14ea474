"""The tables of a run, as Markdown, for README and documentation."""

from collections.abc import Iterable

from .harness import Measurement, Pair, Row
from .results import environment as environment, Results


SHOWN = (
    "tall 2000 x 100, 64 right-hand sides: gradient",
    "tall 2000 x 100: gradient",
    "square 200 x 200: gradient",
    "500 x 100 of rank 60: gradient",
    "diffusion 2000 x 2000, matrix-free: gradient",
)


def stated(results: Results) -> str:
    """Device, versions and the number of rounds."""
    rounds = min(
        len(measurement.samples_ms)
        for row in results.main
        for measurement in row.measurements
        if measurement.samples_ms
    )
    parts = (f"{key}: {value}" for key, value in results.environment.items())
    samples = "sample" if rounds == 1 else "samples"
    return f"{'; '.join(parts)}. Medians of at least {rounds} {samples}, in turns."


def summary(rows: list[Row]) -> str:
    """A line for our first solver of each row, and one for our fastest if another."""
    header = (
        "job",
        "ours, ms",
        "lineax, same solver, ms",
        "ratio",
        "fastest peer, ms",
        "ratio",
        "over the limit",
        "error",
    )
    lines = []
    for row in rows:
        chosen = dict.fromkeys((row.ours[0], row.our_fastest))
        for i, ours in enumerate(chosen):
            lines.append([row.name if i == 0 else "", *_beside(row, ours)])
    return table(header, lines)


def like_with_like(rows: list[Row]) -> str:
    """A few jobs by the first of our solvers, beside the same kind of lineax."""
    header = ("job", "ours, ms", "lineax, ms", "ratio", "error")
    lines = []
    for row in rows:
        if row.name in SHOWN:
            ours = row.ours[0]
            beside = _beside(row, ours)
            lines.append([row.name, *beside[:3], beside[-1]])
    return table(header, lines)


def _beside(row: Row, ours: Measurement) -> list[str]:
    same = row.of("lineax", ours.same)
    fastest = row.fastest_peer
    limit = row.of("limit", ours.name)
    return [
        f"{ours.median_ms:.3g} `{ours.name}`",
        f"{same[0].median_ms:.3g} `{same[0].name}`" if same else "hangs",
        f"{same[0].over(ours):.2f}" if same else "",
        f"{fastest.median_ms:.3g} {_named(fastest)}" if fastest else "none",
        f"{fastest.over(ours):.2f}" if fastest else "",
        f"{ours.over(limit[0]):.1f}" if limit else "",
        f"{ours.error:.1e}",
    ]


def contenders(rows: list[Row]) -> str:
    """Every contender of every job, the fastest first."""
    header = ("job", "contender", "ms (quartiles)", "over our fastest", "error")
    lines = []
    for row in rows:
        back = [it for it in row.measurements if it.samples_ms]
        lost = [it for it in row.measurements if not it.samples_ms]
        for i, each in enumerate(sorted(back, key=lambda it: it.median_ms)):
            lower, upper = each.quartiles_ms
            lines.append(
                [
                    row.name if i == 0 else "",
                    _named(each),
                    f"{each.median_ms:.3g} ({lower:.3g} to {upper:.3g})"
                    f"{', then hung' if each.hung else ''}",
                    f"{each.over(row.our_fastest):.2f}",
                    _error(row, each),
                ]
            )
        lines += [["", _named(each), "hangs", "", ""] for each in lost]
    return table(header, lines)


def _named(measurement: Measurement) -> str:
    if measurement.library == "pseudojvp":
        return f"**`{measurement.name}`**"
    if measurement.library == "limit":
        return f"*limit of `{measurement.name}`*"
    return f"{measurement.library} `{measurement.name}`"


def _error(row: Row, measurement: Measurement) -> str:
    if measurement.error is None:
        return ""
    wrong = "" if row.is_right(measurement) else ": does not count"
    return f"{measurement.error:.1e}{wrong}"


def shapes(rows: list[Row]) -> str:
    """Ours and lineax's same solver, one job a line."""
    header = ("job", "ours, ms", "lineax, ms", "ratio", "error")
    lines = []
    for row in rows:
        (ours,), (same,) = row.ours, row.of("lineax")
        lines.append(
            [
                row.name,
                f"{ours.median_ms:.3g}",
                f"{same.median_ms:.3g}",
                f"{same.over(ours):.2f}",
                f"{ours.error:.1e}",
            ]
        )
    return table(header, lines)


def pairs(figures: list[Pair], unit: str) -> str:
    """Compile times or memory."""
    header = ("job", "ours", unit, "lineax", unit, "ratio")
    return table(
        header,
        (
            [
                pair.job,
                f"`{pair.solver}`",
                f"{pair.ours:.3g}",
                f"`{pair.same}`",
                f"{pair.lineax:.3g}",
                f"{pair.ratio:.2f}",
            ]
            for pair in figures
        ),
    )


def table(header: tuple[str, ...], lines: Iterable[list[str]]) -> str:
    """Markdown, with the columns of numbers to the right."""
    texts = {"job", "contender", "ours", "lineax", "against"}
    ruler = ["---" if title in texts else "---:" for title in header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ruler, *lines))
