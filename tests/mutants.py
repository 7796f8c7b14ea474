"""How many faults, put into the core one at a time, the default tests notice.

    python tests/mutants.py [--module NAME] [--sample N] [--processes N] [--output FILE]

Needs cosmic-ray, which makes the mutants: signs, comparisons, conditions, numbers and
booleans changed; and here calls `f(x, ...)` left out, so that x remains. For each mutant
the default tests of the files below run until one fails, in a process that is forked
with JAX imported, on a copy of the tree. Prints the survivors, and writes all outcomes.
A whole run takes some two hours of two cores; `--sample` draws that many mutants, from
a fixed seed.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from typing import NamedTuple

import cosmic_ray.plugins
import equinox  # noqa: F401  imported before the fork, as all that takes long
import hypothesis  # noqa: F401
import jax  # noqa: F401
import lineax  # noqa: F401
import optimistix  # noqa: F401
import parso
import pytest
import scipy.sparse.linalg  # noqa: F401
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator


ROOT = pathlib.Path(__file__).parents[1]
_MAP = ["solve_counts", "saddle_point", "jvp", "vjp", "project", "higher_order", "vmap"]
_RULE = [
    *_MAP,
    "pytrees",
    "failures",
    "known_failures",
    "nonfinite",
    "large_batch",
]
_FITS = ["varpro_residual", "varpro_dependence", "varpro", "varpro_failures"]
_FITS += ["varpro_compression", "varpro_statistics", "varpro_batch", "varpro_cost"]
# The mutated modules, with the test files that look at them, the quickest first.
FILES = {
    "_base/order.py": ["order", "large_batch"],
    "_map/primitive.py": [*_RULE, "adjoint", "bad_input"],
    "_map/rows.py": [*_RULE, "normal", "neumann", "adjoint", "bad_input"],
    "_map/tangents.py": ["tangent_products", "jvp", "vjp", "operators"],
    "_map/guard.py": [
        "condition",
        "failures",
        "known_failures",
        "lstsq_failures",
        "drop_in",
    ],
    "_varpro/elimination.py": _FITS,
}
_REPLACED = {
    "BinaryOperator": "Add_Sub Sub_Add Mul_Div Div_Mul Pow_Mul BitAnd_BitOr",
    "ComparisonOperator": "Eq_NotEq NotEq_Eq Is_IsNot IsNot_Is Lt_GtE LtE_Gt Gt_LtE "
    "GtE_Lt Lt_LtE LtE_Lt Gt_GtE GtE_Gt",
    "UnaryOperator": "USub_UAdd Delete_Not Delete_USub Delete_Invert",
}
OPERATORS = [
    "core/AddNot",
    "core/NumberReplacer",
    "core/RemoveDecorator",
    "core/ReplaceAndWithOr",
    "core/ReplaceFalseWithTrue",
    "core/ReplaceOrWithAnd",
    "core/ReplaceTrueWithFalse",
    *(
        f"core/Replace{kind}_{pair}"
        for kind, pairs in _REPLACED.items()
        for pair in pairs.split()
    ),
]


class LeaveOutCall(Operator):
    """`f(x, ...)` becomes `(x)`."""

    def mutation_positions(self, node):
        if self._argument(node) is not None:
            yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        prefix = node.get_first_leaf().prefix
        return parso.parse(f"{prefix}({self._argument(node).get_code().strip()})")

    @classmethod
    def examples(cls):
        return ()

    @staticmethod
    def _argument(node):
        """The first one, of the call of a function."""
        if node.type not in ("atom_expr", "power"):
            return None
        call = node.children[-1]
        name = node.children[-2].get_last_leaf().value
        if call.type != "trailer" or call.children[0].value != "(" or name[0].isupper():
            return None
        inside = call.children[1]
        first = inside.children[0] if inside.type == "arglist" else inside
        unwanted = ("argument", "operator") if first.type != "operator" else (first.type,)
        return None if first.type in unwanted else first


class Mutant(NamedTuple):
    module: str
    operator: str
    line: int
    code: str


def mutants(module):
    """All of a module."""
    source = (ROOT / "pseudojvp" / module).read_text()
    available = set(cosmic_ray.plugins.operator_names())
    operators = {
        name: cosmic_ray.plugins.get_operator(name)()
        for name in OPERATORS
        if name in available
    }
    operators["LeaveOutCall"] = LeaveOutCall()
    for name, operator in operators.items():
        positions = [
            position
            for node in ast_nodes(get_ast(source))
            for position in operator.mutation_positions(node)
        ]
        for occurrence, (start, _) in enumerate(positions):
            code = mutate_code(source, operator, occurrence)
            if code is not None and code != source:
                yield Mutant(module, name.removeprefix("core/"), start[0], code)


def run_tests(tree, mutant, log):
    """In a forked process: exits with 0 if no test notices."""
    os.setsid()
    sys.argv = ["pytest"]
    with open(log, "w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    (tree / "pseudojvp" / mutant.module).write_text(mutant.code)
    options = ["-x", "-q", "-n0", "-pno:cacheprovider", "--tb=line"]
    options += ["-Wignore:Module already imported"]  # before the fork
    files = [f"tests/test_{name}.py" for name in FILES[mutant.module]]
    return int(pytest.main([*options, *files]))


class Running(NamedTuple):
    mutant: Mutant
    tree: pathlib.Path
    log: pathlib.Path
    start: float


def outcomes(chosen, trees, limit):
    """Yields (mutant, "killed" or "survived", seconds, the last line printed)."""
    waiting, running, free = collections.deque(chosen), {}, list(trees)
    while waiting or running:
        while waiting and free:
            mutant, tree = waiting.popleft(), free.pop()
            log = tree.with_suffix(".log")
            if (pid := os.fork()) == 0:
                code = 3
                try:
                    code = run_tests(tree, mutant, log)
                except BaseException:
                    traceback.print_exc(file=sys.__stderr__)
                sys.stdout.flush()
                os._exit(code)
            running[pid] = Running(mutant, tree, log, time.monotonic())
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            for late, (*_, start) in running.items():
                if time.monotonic() - start > limit:  # what never ends is noticed
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(late, signal.SIGKILL)
            time.sleep(0.05)
            continue
        mutant, tree, log, start = running.pop(pid)
        original = ROOT / "pseudojvp" / mutant.module
        shutil.copy(original, tree / "pseudojvp" / mutant.module)
        free.append(tree)
        lines = log.read_text().strip().splitlines() or [""]
        code = os.waitstatus_to_exitcode(status)
        if code in (3, 4, 5):  # of pytest, or of this script
            raise RuntimeError(log.read_text())
        outcome = "survived" if code == 0 else "killed"
        yield mutant, outcome, time.monotonic() - start, lines[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--module", action="append", choices=FILES)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--limit", type=float, default=900.0, help="seconds a mutant")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "mutants.json")
    arguments = parser.parse_args()
    chosen = [m for module in arguments.module or FILES for m in mutants(module)]
    print(f"{len(chosen)} mutants")
    random.Random(0).shuffle(chosen)
    chosen = chosen[: arguments.sample]
    counts, records = collections.defaultdict(collections.Counter), []
    with tempfile.TemporaryDirectory() as scratch:
        trees = [pathlib.Path(scratch, f"tree{i}") for i in range(arguments.processes)]
        ignored = shutil.ignore_patterns(".git", ".venv", ".jax_cache")
        for tree in trees:
            shutil.copytree(ROOT, tree, ignore=ignored)
        for mutant, outcome, seconds, last in outcomes(chosen, trees, arguments.limit):
            counts[mutant.module][outcome] += 1
            place = f"{mutant.module}:{mutant.line} {mutant.operator}"
            records.append((place, outcome, round(seconds, 1), last))
            print(f"{len(records)}/{len(chosen)} {outcome} {seconds:.0f} s {place}")
            arguments.output.write_text(json.dumps(records, indent=0))
    for module, count in counts.items():
        total = count.total()
        print(f"{module}: {count['killed']} of {total} killed")


if __name__ == "__main__":
    main()
