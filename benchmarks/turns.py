"""Times the contenders of a benchmark in turns, and prints them in a table."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from . import report
from .harness import calls_a_sample, sample


def parse(question: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with `--rounds`, its description the first line of `question`."""
    parser = argparse.ArgumentParser(description=(question or "").splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"samples of each time ({rounds})"
    )
    return parser


def print_header() -> None:
    print("; ".join(f"{key}: {value}" for key, value in report.environment().items()))


def measure_named(
    doc: str | None, names: Iterable[str], measure: Callable[[str, int], None]
) -> None:
    """The whole of a script: `measure(name, rounds)` for each name that is asked for."""
    parser = parse(doc, 5)
    parser.add_argument("--only", default="", help="part of the name of a problem")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print_header()
    for name in names:
        if arguments.only in name:
            measure(name, arguments.rounds)


def take_turns(
    title: str,
    contenders: Mapping[str, Callable[[], Any]],
    errors: Mapping[str, float],
    rounds: int,
) -> None:
    """Prints a table of samples, one of each contender a round.

    The ratio is its time over that of the first, the median over the rounds: above 1, the
    first is faster.
    """
    counts = [calls_a_sample(call) for call in contenders.values()]
    turn = list(zip(contenders.values(), counts, strict=True))
    milliseconds = np.array(
        [[sample(call, calls) for call, calls in turn] for _ in range(rounds)]
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
