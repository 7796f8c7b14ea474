"""Times a workload's contenders in turns, in one process, and measures their errors."""

import functools as ft
import time
from collections.abc import Callable

from .apart import Apart
from .harness import (
    calls_a_sample,
    Contender,
    Measurement,
    relative_error,
    Row,
    sample,
    Workload,
)


# A workload ends after so much time, if by then it had so many rounds.
_LONGEST_S = 10
_FEWEST_ROUNDS = 5


def measure(script: str, workload: Workload, rounds: int) -> Row:
    """Returns the row of a workload of the module `script`.

    Every contender once a round, `rounds` times. Those that may hang are in processes of
    their own, which do nothing while it is not their turn.
    """
    arguments = workload.arguments()
    reference = workload.reference(*arguments)
    processes = []
    errors, samplers = [], []
    try:
        for index, contender in enumerate(workload.contenders):
            if contender.apart:
                process = Apart.start(script, workload.name, index)
                processes.append(process)
                outcome, take = process.outcome(), process.sample
            else:
                outcome, take = _here(contender, arguments)
            samplers.append(take)
            errors.append(_error(contender, outcome, reference))
        samples = _take_rounds(lambda: [take() for take in samplers], rounds)
    finally:
        for process in processes:
            process.stop()
    times = zip(*samples, strict=True)
    measurements = map(_measurement, workload.contenders, times, errors)
    return Row(workload.name, workload.tolerance, tuple(measurements))


def _here(contender: Contender, arguments: tuple):
    """The outcome, and what takes a sample."""
    call = contender.prepare(*arguments)
    outcome = call()
    return outcome, ft.partial(sample, call, calls_a_sample(call))


def _error(contender: Contender, outcome, reference) -> float | None:
    if outcome is None or contender.library == "limit":
        return None
    return relative_error(outcome, reference)


def _take_rounds(one: Callable[[], list], rounds: int) -> list[list]:
    """The outcomes of `rounds` rounds, or of fewer where they take long."""
    start = time.perf_counter()
    outcomes = []
    for count in range(rounds):
        if count >= _FEWEST_ROUNDS and time.perf_counter() - start > _LONGEST_S:
            break
        outcomes.append(one())
    return outcomes


def _measurement(contender: Contender, times: tuple, error: float | None):
    """`None` among the times is where it hung."""
    hung = None in times
    ended = times[: times.index(None)] if hung else times
    return Measurement(
        contender.library, contender.name, contender.same, ended, error, hung
    )
