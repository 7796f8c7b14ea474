"""How long do the main jobs take on this machine's accelerator (milliseconds)?

`python -m benchmarks.device` times ours beside lineax and `jax.numpy`, in float64 and in
float32, looks at the values beside NumPy's, and writes one Markdown table. It begins
nothing after five minutes. `--anyway` runs it on a CPU, at a tenth of the sizes.
"""

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from . import (
    call_overhead,
    harness,
    many_problems,
    many_right_hand_sides,
    many_tangents,
    matrix_free,
    measure,
    projected_residual,
    rank_deficient,
    report,
    results,
    single_solve,
)
from .harness import Contender, Row, Workload


# A job that has begun takes up to some twenty seconds, most of it compilation.
_LAST_START_S = 300
_ROUNDS = 5
# Of the jobs that stop at a tolerance or have a cutoff, and of a right outcome.
_TOLERANCES = {"float64": 1e-10, "float32": 1e-5}
_RIGHT = {"float64": 1e-8, "float32": 1e-2}
_NONE = "none"


def _jobs(tolerance: float) -> Iterator[tuple[Workload, bool]]:
    """Those of the main table, and whether they are as well of a tenth of the size."""
    scripts = (
        single_solve,
        many_right_hand_sides,
        many_tangents,
        projected_residual,
        many_problems,
    )
    for script in scripts:
        yield from ((workload, True) for workload in script.workloads)
    yield from ((workload, True) for workload in rank_deficient.at(tolerance))
    yield from ((workload, False) for workload in matrix_free.at(tolerance))
    yield from ((workload, False) for workload in call_overhead.workloads)


def _taking_part(workload: Workload, *, apart: bool) -> tuple[Contender, ...]:
    """Our first two, lineax's of the same kind, and the first two of JAX.

    - `apart`: whether those take part that may wait for ever, which they do on CPUs.
    """
    able = [each for each in workload.contenders if apart or not each.apart]
    of = lambda library: [each for each in able if each.library == library]
    ours = of("pseudojvp")[:2]
    same = [each for each in of("lineax") if each.name in {own.same for own in ours}]
    return (*ours, *same, *of("jax")[:2])


def _cut(array: np.ndarray) -> np.ndarray:
    """One in ten along each axis of a hundred and more."""
    return array[tuple(slice(None, None, 10 if n >= 100 else 1) for n in array.shape)]


def _measured(
    workload: Workload, arguments: tuple, truth: Any, dtype: str, *, apart: bool
) -> tuple[Row, list[str]]:
    """The row of those that end, and what became of the others."""
    arguments = tuple(array.astype(dtype) for array in arguments)
    able, failed = [], []
    for each in _taking_part(workload, apart=apart):
        try:
            call = each.prepare(*arguments)
            jax.block_until_ready(call())
        except Exception as error:  # whatever a library says of this platform
            first = str(error).strip().partition("\n")[0][:120]
            failed.append(f"{each.library} `{each.name}`: {first}")
        else:
            prepare = lambda *_, call=call: call
            able.append(dataclasses.replace(each, prepare=prepare, apart=False))
    job = Workload(
        workload.name, lambda: arguments, lambda *_: truth, tuple(able), _RIGHT[dtype]
    )
    return measure.measure("", job, _ROUNDS), failed


def _lines(row: Row, dtype: str) -> Iterator[list[str]]:
    peers = [each for each in row.measurements if each.library == "jax"]
    right = [each for each in peers if row.is_right(each)]
    fastest = min(right or peers, key=lambda each: each.median_ms, default=None)
    for index, ours in enumerate(row.ours):
        same = row.of("lineax", ours.same)
        cells = [row.name if index == 0 else "", dtype if index == 0 else ""]
        for each in (ours, same[0] if same else None, fastest):
            cells += [_NONE, ""] if each is None else _cells(each)
            if each not in (None, ours):
                cells.append(f"{each.over(ours):.2f}")
            elif each is None:
                cells.append("")
        yield cells


def _cells(measured: harness.Measurement) -> list[str]:
    lower, upper = measured.quartiles_ms
    time_ms = f"{measured.median_ms:.3g} ({lower:.3g} to {upper:.3g})"
    return [f"{time_ms} `{measured.name}`", f"{measured.error:.1e}"]


_HEADER = (
    *("job", "dtype", "ours, ms (quartiles)", "error"),
    *("lineax, same solver", "its error", "ratio"),
    *("jax.numpy", "its error", "ratio"),
)


def _page(lines: Iterable[list[str]], notes: Iterable[str], *, small: bool) -> str:
    stated = results.environment() | {"dtype": "float64 and float32"}
    parts = "; ".join(f"{key}: {value}" for key, value in stated.items())
    size = " At a tenth of the sizes that the names of the jobs say." if small else ""
    said = f"Medians of {_ROUNDS} rounds, in turns. A ratio above one: ours is faster."
    page = f"{report.table(_HEADER, lines)}\n\n{parts}. {said}{size}\n"
    return page + "".join(f"\n- {note}" for note in notes)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device",
        description="Times the main jobs on an accelerator, beside lineax and JAX.",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("device.md"),
        help="the file that the table is written into (default: device.md)",
    )
    parser.add_argument(
        "--anyway",
        action="store_true",
        help="run on a CPU too, at a tenth of the sizes",
    )
    parser.add_argument(
        "--only", default="", help="run the jobs with this in their names"
    )
    return parser.parse_args()


def main() -> None:
    arguments = _parse()
    jax.config.update("jax_enable_x64", True)
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and not arguments.anyway:
        raise SystemExit(
            "This machine has no accelerator that JAX knows: nothing was measured. Pass "
            "`--anyway` to run at a tenth of the sizes on the CPU."
        )
    start = time.perf_counter()
    late = lambda: time.perf_counter() - start > _LAST_START_S
    lines, notes = [], []
    jobs = [list(_jobs(tolerance)) for tolerance in _TOLERANCES.values()]
    for (workload, scales), *others in zip(*jobs, strict=True):
        if arguments.only not in workload.name:
            continue
        if late():
            notes.append(f"{workload.name}: not run, for want of time.")
            continue
        data = workload.arguments()
        data = tuple(map(_cut, data)) if on_cpu and scales else data
        truth = workload.reference(*data)
        of_dtype = [workload, *(other for other, _ in others)]
        for dtype, each in zip(_TOLERANCES, of_dtype, strict=True):
            if late():
                notes.append(f"{workload.name}, {dtype}: not run, for want of time.")
                continue
            row, failed = _measured(each, data, truth, dtype, apart=not on_cpu)
            lines += _lines(row, dtype)
            notes += [f"{workload.name}, {dtype}: {failure}" for failure in failed]
            if not row.ours:
                notes.append(f"{workload.name}, {dtype}: none of ours took part.")
        page = _page(lines, notes, small=on_cpu)
        arguments.output.write_text(page, encoding="utf-8")
        print(f"{workload.name}: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"\n{_page(lines, notes, small=on_cpu)}\n\nWritten to {arguments.output}.")


if __name__ == "__main__":
    main()
