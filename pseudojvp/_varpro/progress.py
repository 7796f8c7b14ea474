import sys

from .._base.optional import import_late


class EvaluationLine:
    """Shows the residual at each evaluation: one line that is overwritten, or a log."""

    def __init__(self):
        self._evaluations = 0

    def begin(self) -> None:
        self._evaluations = 0

    def show(self, norm) -> None:
        self._evaluations += 1
        text = f"varpro: evaluation {self._evaluations}, ‖r‖/‖W y‖ = {norm:.6e}"
        if sys.stderr.isatty():
            print(f"\r{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


class ChunkBar:
    """A bar of the chunks of a batch that are done."""

    def __init__(self):
        self._bar = None

    def begin(self, chunks) -> None:
        total = None if chunks is None else int(chunks)
        tqdm = import_late("tqdm").tqdm
        self._bar = tqdm(total=total, desc="varpro_batch", unit="chunk")

    def update(self, _) -> None:
        if self._bar is not None:
            self._bar.update()
            if self._bar.n == self._bar.total:
                self._bar.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
