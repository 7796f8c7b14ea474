"""The table of the measured rows, as Markdown and as JSON."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import subprocess

import jax

from .harness import Measurement, Row


_PACKAGES = ("pseudojvp", "lineax", "jax", "jaxlib")
_SETTINGS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "XLA_FLAGS", "NPROC")

_EXPLANATION = """\
Each ratio is lineax's time over ours, the median over rounds in which the contenders take
turns in one process: above 1, ours is faster. Times are for one call, compiled and warm,
with the problem data as arguments: the median and the quartiles over at least {rounds}
rounds. The error is the largest relative one against dense NumPy formulas. Compiling
(tracing included) is from empty caches. "Fastest" is the fastest of the solvers of
lineax tried whose error is within the row's tolerance; `results.json` has them all.
"""

_COLUMNS = (
    "workload",
    "ours, ms (quartiles)",
    "lineax, same solver, ms",
    "ratio",
    "lineax, fastest, ms",
    "ratio",
    "error ours",
    "error lineax",
    "compile ours / lineax, s",
)


def environment() -> dict[str, str]:
    """Returns device, dtype, versions, commit, and the settings that change speed."""
    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "device": f"{device.platform} ({device.device_kind}), {os.cpu_count()} CPU cores",
        "dtype": "float64",
        **versions,
        "commit": _commit(),
        **{name: os.environ[name] for name in _SETTINGS if name in os.environ},
    }


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    folder = pathlib.Path(__file__).parent
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def as_markdown(header: dict[str, str], rows: list[Row]) -> str:
    """Returns the page: what was run on what, and a line for each row."""
    stated = "; ".join(f"{key}: {value}" for key, value in header.items())
    explanation = _EXPLANATION.format(rounds=min(row.rounds for row in rows))
    lines = [
        _line(_COLUMNS),
        _line(["---", *["---:"] * (len(_COLUMNS) - 1)]),
        *map(_row_line, rows),
    ]
    return "\n".join(["# Benchmarks", "", stated, "", explanation, *lines, ""])


def _line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _row_line(row: Row) -> str:
    ours, same, fastest = row.ours, row.same, row.fastest
    lower, upper = ours.quartiles_ms
    return _line(
        [
            row.name,
            f"{ours.median_ms:.3g} ({lower:.3g} to {upper:.3g}) `{ours.solver}`",
            _time(same),
            f"{same.ratio:.2f}",
            "none" if fastest is None else _time(fastest),
            "" if fastest is None else f"{fastest.ratio:.2f}",
            f"{ours.error:.1e}",
            f"{same.error:.1e}",
            f"{ours.compile_s:.2f} / {same.compile_s:.2f}",
        ]
    )


def _time(measurement: Measurement) -> str:
    return f"{measurement.median_ms:.3g} `{measurement.solver}`"


def as_json(header: dict[str, str], rows: list[Row]) -> str:
    """Returns the same with every contender of every row."""
    named = [
        {
            **dataclasses.asdict(row),
            "fastest": None if row.fastest is None else row.fastest.solver,
        }
        for row in rows
    ]
    return json.dumps({"environment": header, "rows": named}, indent=2) + "\n"
