"""What a run of the benchmarks found, and its JSON."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import subprocess

import jax

from .harness import Measurement, Pair, Row


_PACKAGES = ("pseudojvp", "lineax", "jax", "jaxlib", "numpy", "scipy", "torch")
_SETTINGS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "XLA_FLAGS", "NPROC")


@dataclasses.dataclass(frozen=True)
class Results:
    """The measured rows.

    - `main`: the jobs, with every contender; `shapes`, `scaling`: ours and lineax's.
    - `compile_s`, `memory_mib`: ours and lineax's.
    """

    environment: dict[str, str]
    main: list[Row]
    shapes: list[Row]
    scaling: list[Row]
    compile_s: list[Pair]
    memory_mib: list[Pair]

    def row(self, name: str) -> Row:
        (row,) = (row for row in self.main if row.name == name)
        return row


def environment() -> dict[str, str]:
    """Returns device, dtype, versions, commit, and the settings that change speed."""
    device = jax.devices()[0]
    return {
        "device": f"{device.platform} ({device.device_kind}), {os.cpu_count()} CPU cores",
        "dtype": "float64",
        **{name: version for name in _PACKAGES if (version := _version(name))},
        "commit": _commit(),
        **{name: os.environ[name] for name in _SETTINGS if name in os.environ},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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


def as_json(results: Results) -> str:
    return json.dumps(dataclasses.asdict(results), indent=1) + "\n"


def from_json(text: str) -> Results:
    stored = json.loads(text)
    rows = {
        name: [_row(row) for row in stored.pop(name)]
        for name in ("main", "shapes", "scaling")
    }
    pairs = {
        name: [Pair(**pair) for pair in stored.pop(name)]
        for name in ("compile_s", "memory_mib")
    }
    return Results(**stored, **rows, **pairs)


def _row(stored: dict) -> Row:
    measurements = [
        Measurement(**{**each, "samples_ms": tuple(each["samples_ms"])})
        for each in stored.pop("measurements")
    ]
    return Row(**stored, measurements=tuple(measurements))
