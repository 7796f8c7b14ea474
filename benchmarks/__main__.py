"""Runs the benchmarks and prints Markdown tables: `python -m benchmarks --help`."""

import argparse
import pathlib
import time
from collections.abc import Sequence
from types import ModuleType

import jax

from . import (
    call_overhead,
    compile_time,
    harness,
    many_problems,
    many_right_hand_sides,
    many_tangents,
    matrix_free,
    measure,
    memory,
    projected_residual,
    publish,
    rank_deficient,
    report,
    results,
    scaling,
    shapes,
    single_solve,
)


_MAIN = (
    many_right_hand_sides,
    many_tangents,
    projected_residual,
    many_problems,
    single_solve,
    rank_deficient,
    matrix_free,
    call_overhead,
)
_FOLDER = pathlib.Path(__file__).parent


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Times pseudojvp beside other libraries and prints Markdown tables.",
    )
    parser.add_argument(
        "--only",
        metavar="SUBSTRING",
        default="",
        help="run the rows with this in '<script>: <row>', as in 'single_solve: tall', "
        "print them, and store nothing",
    )
    parser.add_argument(
        "--rounds", type=int, default=9, help="samples of each time (default: 9)"
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help="write tables and pictures into README.md and docs/",
    )
    parser.add_argument(
        "--stored",
        action="store_true",
        help="run nothing: take benchmarks/results.json, of the last whole run",
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds got {arguments.rounds}; pass at least 1")
    if arguments.only and (arguments.publish or arguments.stored):
        parser.error("--only runs part of a table; leave out --publish and --stored")
    return arguments


def _measure(scripts: Sequence[ModuleType], only: str, rounds: int) -> list[harness.Row]:
    rows = []
    for script in scripts:
        for workload in script.workloads:
            if only not in f"{script.__name__.rpartition('.')[2]}: {workload.name}":
                continue
            start = time.perf_counter()
            row = measure.measure(script.__name__, workload, rounds)
            rows.append(row)
            print(f"{row.name} ({time.perf_counter() - start:.0f} s)", flush=True)
    return rows


def _run(rounds: int) -> results.Results:
    start = time.perf_counter()
    found = results.Results(
        environment=results.environment(),
        main=_measure(_MAIN, "", rounds),
        shapes=_measure([shapes], "", rounds),
        scaling=_measure([scaling], "", rounds),
        compile_s=compile_time.pairs(),
        memory_mib=memory.pairs(),
    )
    print(f"{time.perf_counter() - start:.0f} s in all")
    return found


def main() -> None:
    arguments = _parse()
    jax.config.update("jax_enable_x64", True)
    if arguments.only:
        scripts = (*_MAIN, shapes, scaling)
        rows = _measure(scripts, arguments.only, arguments.rounds)
        if not rows:
            raise SystemExit(f"No row has {arguments.only!r} in '<script>: <row>'.")
        print(report.contenders(rows))
        return
    file = _FOLDER / "results.json"
    if arguments.stored:
        found = results.from_json(file.read_text())
    else:
        found = _run(arguments.rounds)
        file.write_text(results.as_json(found))
    print(f"\n{report.stated(found)}\n\n{report.summary(found.main)}")
    if arguments.publish:
        publish.publish(found)


if __name__ == "__main__":
    main()
