"""A contender that may never return, in a process of its own.

On jaxlib 0.10.2 two batched library calls of one program can wait for each other for
ever. A process that does not answer in time is stopped.
"""

import dataclasses
import importlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.process

import jax
import numpy as np

from . import harness


# From the start of a process to the outcome of its first call, and for a sample.
_READY_S = 40
_ANSWER_S = 20


@dataclasses.dataclass
class Apart:
    process: multiprocessing.process.BaseProcess
    connection: multiprocessing.connection.Connection
    hangs: bool = False

    @classmethod
    def start(cls, script: str, workload: str, index: int) -> "Apart":
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        arguments = (there, script, workload, index)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        there.close()
        return cls(process, here)

    def outcome(self):
        """That of the first call, as NumPy arrays, or `None` if it hangs."""
        return self._answer(_READY_S)

    def sample(self) -> float | None:
        if self.hangs:
            return None
        self.connection.send("next")
        return self._answer(_ANSWER_S)

    def stop(self) -> None:
        self.process.kill()

    def _answer(self, seconds: float):
        if self.connection.poll(seconds):
            return self.connection.recv()  # `EOFError` if the process raised
        self.hangs = True
        self.stop()
        return None


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
