"""Fits fifteen years of tides in four processes, none of which holds the whole problem.

The sea level at a gauge, hour by hour, is a sum of 31 tides of known speeds, a mean and a
rise: 64 amplitudes in 131,072 equations,

    level ≈ Σ aᵢ cos(ωᵢ t) + bᵢ sin(ωᵢ t) + mean + rise t.

The script starts four processes, which find each other by `jax.distributed.initialize`,
as those of a cluster do. Each makes the hours and levels of its own quarter, and XLA
moves between them what the solver cannot do without. Asked for is the level that the fit
foretells for an hour of the year after, with its derivatives: how it follows every level
measured, and every hour that the clock of the gauge told.

It prints for each solver what moves, counted in the compiled program, and the memory that
the program takes on a device, beside one process. NumPy solves the problem in one piece:

    python examples/distributed_least_squares.py [--output distributed_least_squares.png]
"""

import argparse
import json
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from matplotlib.figure import Figure

import pseudojvp as pj


PROCESSES = 4
ROWS = 2**17
# Degrees an hour: M2, S2, N2, K2, ... to the yearly tide.
# fmt: off
SPEEDS = np.array([
    28.9841042, 30.0, 28.4397295, 30.0821373, 27.8953548, 27.9682084,
    28.5125831, 29.5284789, 29.9589333, 29.4556253, 15.0410686, 13.9430356,
    14.9589314, 13.3986609, 15.5854433, 16.1391017, 12.8542862, 13.4715145,
    15.0, 14.4966939, 57.9682084, 58.9841042, 57.4238337, 60.0,
    86.9523127, 43.4761563, 115.9364169, 1.0980331, 0.5443747, 0.0821373,
    0.0410686,
])
# fmt: on
LATER = ROWS + 100.0 * 24  # the hour that is foretold
NOISE = 0.05  # m
SOLVERS = {
    "QR": pj.QR(blocks=PROCESSES),
    "CholeskyQR": pj.CholeskyQR(),
    "Normal(CG)": pj.Normal(pj.CG(rtol=1e-12, atol=1e-12)),
    "LSMR": pj.LSMR(rtol=1e-12, atol=1e-12),
}


def tides(hours):
    """Returns the basis functions at the hours, (hours, 64)."""
    angles = np.deg2rad(SPEEDS) * hours[:, None]
    trend = jnp.stack([jnp.ones_like(hours), 2 * hours / ROWS - 1], axis=1)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles), trend], axis=1)


def measure(start, stop):
    """Returns hours and levels (m) of some rows, from a generator of their own."""
    hours = np.arange(start, stop, dtype=float)
    size = 1.5 / np.arange(1, SPEEDS.size + 1)
    angles = np.deg2rad(SPEEDS) * hours[:, None] + np.arange(SPEEDS.size)
    levels = np.cos(angles) @ size + 0.05 * hours / ROWS
    return hours, levels + NOISE * np.random.default_rng(start).standard_normal(
        hours.size
    )


def foretell(hours, levels, solver):
    solution = pj.linear_solve(tides(hours), levels, solver)
    return tides(jnp.array([LATER]))[0] @ solution.value


def program(name):
    """Returns the level foretold and its derivatives by all levels and hours."""
    function = jax.value_and_grad(foretell, argnums=(0, 1))
    return jax.jit(lambda hours, levels: function(hours, levels, SOLVERS[name]))


def moved(compiled):
    """Returns the bytes that others send a device: once, and in each step of a loop."""
    collective = re.compile(
        r" = (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
        r"(?:-start)?\("
    )
    bytes_of, calls, loops = {}, {}, []
    for line in compiled.as_text().splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            computation = header[1]
            bytes_of[computation], calls[computation] = 0, []
        elif found := collective.search(line):
            for bits, shape in re.findall(r"[a-z]+(\d*)\[([\d,]*)\]", found[1]):
                numbers = np.prod([int(length) for length in shape.split(",") if length])
                bytes_of[computation] += int(numbers) * int(bits or 8) // 8
        else:
            called = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", line)
            if called:
                calls[computation] += called
            loops += re.findall(r"body=%?([\w.\-]+)", line)
    looped = set()
    while loops:
        computation = loops.pop()
        looped.add(computation)
        loops += [called for called in calls[computation] if called not in looped]
    each_step = sum(bytes_of[computation] for computation in looped)
    return sum(bytes_of.values()) - each_step, each_step


def memory(compiled):
    """Returns the bytes on a device: of what goes in, comes out and is in between."""
    of = compiled.memory_analysis()
    return of.argument_size_in_bytes + of.output_size_in_bytes + of.temp_size_in_bytes


def work(process, port, folder):
    """Fits as one of the processes, and writes what it has."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", PROCESSES, process)
    mesh = jax.make_mesh((PROCESSES,), ("rows",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("rows"))
    share = ROWS // PROCESSES
    mine = measure(process * share, (process + 1) * share)
    arguments = [
        jax.make_array_from_process_local_data(rows, part, (ROWS,)) for part in mine
    ]
    told = {}
    for name in SOLVERS:
        compiled = program(name).lower(*arguments).compile()
        began = time.perf_counter()
        level, derivatives = jax.block_until_ready(compiled(*arguments))
        seconds = time.perf_counter() - began
        by_hour, by_level = (each.addressable_shards[0].data for each in derivatives)
        np.savez(
            folder / f"{name}-{process}.npz",
            level=level,
            by_hour=by_hour,
            by_level=by_level,
        )
        told[name] = [*moved(compiled), memory(compiled), seconds]
    (folder / f"{process}.json").write_text(json.dumps(told))


def start_processes(folder):
    """Runs this script once for each process, and returns what they tell."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--folder", str(folder), "--port", str(port)]
    processes = [
        subprocess.Popen([*command, "--process", str(number)])
        for number in range(PROCESSES)
    ]
    try:
        for process in processes:
            assert process.wait(timeout=300) == 0, "a process failed"
    finally:
        for process in processes:
            process.kill()
    return json.loads((folder / "0.json").read_text())


def by_numpy():
    """Returns the level foretold and its derivatives, from all rows in one piece."""
    share = ROWS // PROCESSES
    parts = [measure(start, start + share) for start in range(0, ROWS, share)]
    hours, levels = map(np.concatenate, zip(*parts, strict=True))
    basis, later = np.asarray(tides(hours)), np.asarray(tides(np.array([LATER])))[0]
    _, slope = jax.jvp(tides, (jnp.asarray(hours),), (jnp.ones(ROWS),))
    q, r = np.linalg.qr(basis)
    amplitudes = np.linalg.solve(r, q.T @ levels)
    by_level = q @ np.linalg.solve(r.T, later)
    # dA = (b − A x) uᵀ − (A u) xᵀ with u = (AᵀA)⁻¹ w
    u = np.linalg.solve(r, np.linalg.solve(r.T, later))
    residual = levels - basis @ amplitudes
    by_hour = residual * (slope @ u) - by_level * (slope @ amplitudes)
    return later @ amplitudes, by_hour, by_level


def draw(told, alone, output):
    names = list(SOLVERS)
    place = np.arange(len(names))
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    once = np.array([told[name][0] for name in names]) / 1024
    each_step = np.array([told[name][1] for name in names]) / 1024
    left.bar(place - 0.2, once, 0.4, label="once")
    left.bar(place + 0.2, each_step, 0.4, label="in each step of a loop")
    left.axhline(ROWS * 64 * 8 / 1024, color="0.4", linestyle="--")
    left.text(place[-1] + 0.45, ROWS * 64 * 8 / 1024, "all of A", ha="right", va="bottom")
    left.set_yscale("log")
    left.set_ylim(top=4 * ROWS * 64 * 8 / 1024)
    left.set_ylabel("KiB that a device receives")
    left.legend()
    here = np.array([told[name][2] for name in names]) / 2**20
    one = np.array([alone[name] for name in names]) / 2**20
    right.bar(place - 0.2, one, 0.4, color="0.7", label="one process")
    right.bar(place + 0.2, here, 0.4, label=f"each of {PROCESSES} processes")
    right.set_ylabel("MiB on a device")
    right.legend()
    for axes in (left, right):
        axes.set_xticks(place, names)
    figure.suptitle(f"A fit of {ROWS:,} x 64 and its gradient in {PROCESSES} processes")
    figure.savefig(output, dpi=90)


def main(output: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        told = start_processes(pathlib.Path(folder))
        level, by_hour, by_level = by_numpy()
        differences = {}
        for name in SOLVERS:
            parts = [
                np.load(pathlib.Path(folder) / f"{name}-{number}.npz")
                for number in range(PROCESSES)
            ]
            joined = [
                np.concatenate([part[field] for part in parts])
                for field in ("by_hour", "by_level")
            ]
            differences[name] = max(
                *(abs(part["level"] / level - 1) for part in parts),
                *(
                    np.linalg.norm(got - truth) / np.linalg.norm(truth)
                    for got, truth in zip(joined, (by_hour, by_level), strict=True)
                ),
            )
    whole = jax.ShapeDtypeStruct((ROWS,), float)
    alone = {
        name: memory(program(name).lower(whole, whole).compile()) for name in SOLVERS
    }

    print(f"Foretold: {level:.3f} m. A alone takes {ROWS * 64 * 8 / 2**20:.0f} MiB.\n")
    print("            moved, KiB         memory, MiB               time     difference")
    print("solver      once   each step   one process  each of four  seconds  from NumPy")
    for name, (once, each_step, bytes_here, seconds) in told.items():
        print(
            f"{name:10} {once / 1024:6.1f} {each_step / 1024:11.2f} "
            f"{alone[name] / 2**20:13.1f} {bytes_here / 2**20:13.1f} "
            f"{seconds:8.2f} {differences[name]:11.1e}"
        )
    # XLA lets no call of LAPACK overwrite its operand in a program that it divides.
    part = ROWS * 64 * 8 / PROCESSES
    copies = told["QR"][2] / part, alone["QR"] / part / PROCESSES
    print(
        "\nQR takes {:.1f} times a process's part of A, and {:.1f} times A in one\n"
        "process, where it overwrites A: one copy more, so not a quarter.".format(*copies)
    )
    draw(told, alone, output)
    print(f"\nWrote {output}.")
    for name, (once, each_step, bytes_here, _) in told.items():
        assert differences[name] < 1e-9, (name, differences[name])
        assert once + each_step < ROWS * 64 * 8 / 100, (name, once, each_step)
        most = 1.3
        if name == "QR":  # one copy of a part of A more, as printed, and no more than it
            most = 1.6
            assert copies[0] - copies[1] < 1.1, copies
        assert bytes_here < most / PROCESSES * alone[name], (name, bytes_here)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("distributed_least_squares.png"),
    )
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if arguments.process is None:
        main(arguments.output)
    else:
        work(arguments.process, arguments.port, arguments.folder)
