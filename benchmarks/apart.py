"""Times contenders of which some may never return, each in a process of its own.

On jaxlib 0.10.2 two batched library calls of one program can wait for each other for
ever. The processes take turns, and one that does not answer in time is stopped.
"""

import dataclasses
import importlib
import multiprocessing
import multiprocessing.connection
import time

import jax
import numpy as np

from . import harness


# From the start of a process to the outcome of its first call. The next is started after
# the first of the times, as one that hangs takes no time of the processor.
_PATIENCE_S = 15
_READY_S = 60
_ANSWER_S = 10


@dataclasses.dataclass
class _Contender:
    process: multiprocessing.Process
    connection: multiprocessing.connection.Connection
    hangs: bool = False

    def answer(self, seconds: float):
        """What the process sends next, or `None`: then it is stopped."""
        if self.connection.poll(max(seconds, 0)):
            return self.connection.recv()  # `EOFError` if it raised
        self.hangs = True
        self.process.kill()
        return None

    def sample(self):
        if self.hangs:
            return None
        self.connection.send("next")
        return self.answer(_ANSWER_S)


def measure(script: str, workload: harness.Workload, rounds: int) -> harness.Row:
    """As `harness.measure`, for a workload of the module `script`."""
    reference = workload.reference(*workload.arguments())
    contenders = []
    try:
        for i in range(len(workload.contenders)):
            contenders.append(_start(script, workload.name, i))
            contenders[-1].connection.poll(_PATIENCE_S)
        deadline = time.perf_counter() + _READY_S - _PATIENCE_S
        outcomes = [
            contender.answer(deadline - time.perf_counter()) for contender in contenders
        ]
        samples = harness.take_rounds(
            lambda: [contender.sample() for contender in contenders], rounds
        )
    finally:
        for contender in contenders:
            contender.process.kill()
    errors = [
        None
        if outcome is None or contender.library == "limit"
        else harness.relative_error(outcome, reference)
        for contender, outcome in zip(workload.contenders, outcomes, strict=True)
    ]
    return harness.as_row(workload, samples, errors)


def _start(*contender) -> _Contender:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, *contender), daemon=True)
    process.start()
    there.close()
    return _Contender(process, here)


def _serve(connection, script: str, name: str, index: int):
    """Sends the outcome, and then, for each message, a sample."""
    jax.config.update("jax_enable_x64", True)
    workloads = importlib.import_module(script).workloads
    (workload,) = (workload for workload in workloads if workload.name == name)
    call = workload.contenders[index].prepare(*workload.arguments())
    connection.send(jax.tree.map(np.asarray, call()))
    calls = harness.calls_a_sample(call)
    while connection.recv():
        connection.send(harness.sample(call, calls))
