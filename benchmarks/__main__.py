"""Runs the benchmarks and prints a Markdown table: `python -m benchmarks --help`."""

import argparse
import pathlib
import time

import jax

from . import (
    many_right_hand_sides,
    many_tangents,
    matrix_free,
    projected_residual,
    rank_deficient,
    report,
    single_solve,
)
from .harness import measure, Row, Workload


_SCRIPTS = (
    many_right_hand_sides,
    many_tangents,
    projected_residual,
    single_solve,
    rank_deficient,
    matrix_free,
)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Times pseudojvp beside lineax and prints a Markdown table.",
    )
    parser.add_argument(
        "--only",
        metavar="SUBSTRING",
        default="",
        help="run the rows with this in '<script>: <row>', as in 'single_solve: tall'",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=pathlib.Path,
        help="folder for results.md and results.json; default: benchmarks/, or with "
        "--only none, so that part of a table never replaces the whole",
    )
    parser.add_argument(
        "--rounds", type=int, default=25, help="samples of each time (default: 25)"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds got {arguments.rounds}; pass at least 1")
    return arguments


def _selected(substring: str) -> list[Workload]:
    return [
        workload
        for script in _SCRIPTS
        for workload in script.workloads
        if substring in f"{script.__name__.rpartition('.')[2]}: {workload.name}"
    ]


def _progress(row: Row) -> str:
    same, fastest = row.same, row.fastest
    ours = f"ours {row.ours.median_ms:.3g} ms"
    peers = f"{same.solver} of lineax {same.ratio:.2f}x"
    if fastest is not None and fastest is not same:
        peers = f"{peers}, {fastest.solver} {fastest.ratio:.2f}x"
    return f"{row.name}: {ours}, {peers}"


def main() -> None:
    arguments = _parse()
    jax.config.update("jax_enable_x64", True)
    workloads = _selected(arguments.only)
    if not workloads:
        raise SystemExit(f"No row has {arguments.only!r} in '<script>: <row>'.")
    rows = []
    start = time.perf_counter()
    for count, workload in enumerate(workloads, start=1):
        row = measure(workload, arguments.rounds)
        rows.append(row)
        elapsed = time.perf_counter() - start
        print(f"[{count}/{len(workloads)}, {elapsed:.0f} s] {_progress(row)}", flush=True)
    header = report.environment()
    table = report.as_markdown(header, rows)
    print(f"\n{table}")
    output = arguments.output
    if output is None and not arguments.only:
        output = pathlib.Path(__file__).parent
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.md").write_text(table)
        (output / "results.json").write_text(report.as_json(header, rows))


if __name__ == "__main__":
    main()
