"""Times the contenders of a benchmark in turns, and prints them in a table."""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from . import report


def parse(question: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with `--rounds`, its description the first line of `question`."""
    parser = argparse.ArgumentParser(description=(question or "").splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"samples of each time ({rounds})"
    )
    return parser


def print_header() -> None:
    print("; ".join(f"{key}: {value}" for key, value in report.environment().items()))


def take_turns(
    title: str,
    contenders: Mapping[str, Callable[[], Any]],
    errors: Mapping[str, float],
    rounds: int,
) -> None:
    """Prints a table: each contender is called once a round, after one call unmeasured.

    The ratio is its time over that of the first, the median over the rounds: above 1, the
    first is faster.
    """
    for call in contenders.values():
        jax.block_until_ready(call())
    milliseconds = np.array(
        [[_milliseconds(call) for call in contenders.values()] for _ in range(rounds)]
    )
    ratios = np.median(milliseconds / milliseconds[:, :1], axis=0)
    lower, median, upper = np.percentile(milliseconds, [25, 50, 75], axis=0)
    print(f"\n{title} ({rounds} rounds)\n")
    print("| contender | ms (quartiles) | ratio | error |")
    print("| --- | ---: | ---: | ---: |")
    for i, name in enumerate(contenders):
        spread = f"{lower[i]:.3g} to {upper[i]:.3g}"
        print(
            f"| {name} | {median[i]:.3g} ({spread}) | {ratios[i]:.2f} | "
            f"{errors[name]:.1e} |",
            flush=True,
        )


def _milliseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return 1e3 * (time.perf_counter() - start)
