"""What every test runs under, and how a test chooses which of its cases run when.

A case runs by default, in CI as well (`slow`), or before a release (`nightly`). A test of
many cases names those of the first two by patterns of what its id has in brackets,

    @pytest.mark.default("tall-complex-QR")
    @pytest.mark.ci("*-QR", "*-SVD")

and the rest is `nightly`. A case whose parameters are marked `slow` or `nightly` runs
then. `test_selection.py` checks that each pattern chooses something. With `--minutes` a
run ends in time: tests that have not begun by then are skipped, on each day others.
"""

import datetime
import fnmatch
import gc
import importlib
import itertools
import os
import pathlib
import random
import time

import equinox as eqx
import jax
import jaxtyping
import pytest
from xdist.scheduler import LoadScopeScheduling


ROOT = pathlib.Path(__file__).parents[1]
CHOICES = pytest.StashKey[dict]()

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# A test runs its programs a few times at most: compiling is what takes time.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_traceback_filtering", "off")  # takes longer than most failures
if jax.__version_info__ < (0, 11):  # two thirds of the time; later XLA has no choice here
    os.environ["XLA_FLAGS"] = " ".join(
        [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_use_fusion_emitters=false"]
    )
# What has been compiled before is not compiled again, other than what can raise. Keeping
# it takes a fifth of the time of a first run, which CI does without.
if not {"CI", "PSEUDOJVP_COLD"} & set(os.environ):
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# Each compiled program takes memory maps; without one XLA ends the process.
MAPS = pathlib.Path("/proc/self/maps")
MOST_MAPS = pathlib.Path("/proc/sys/vm/max_map_count")
BEGIN = time.monotonic()
TESTS = itertools.count()


def pytest_addoption(parser):
    today = datetime.date.today().toordinal()
    parser.addoption("--minutes", type=float, help="after which no test begins")
    parser.addoption("--day", type=int, default=today, help="gives the order of files")


def case_of(item):
    """What stands in the brackets of the id."""
    return item.callspec.id if hasattr(item, "callspec") else ""


def matches(case, mark):
    """Whether one of the patterns of a mark, if there is one, chooses a case."""
    return mark is not None and any(fnmatch.fnmatchcase(case, p) for p in mark.args)


def tier(item):
    """When an item runs: "default", "slow" or "nightly"."""
    if item.get_closest_marker("nightly"):
        return "nightly"
    if item.get_closest_marker("slow"):
        return "slow"
    default, ci = map(item.get_closest_marker, ("default", "ci"))
    if not case_of(item) or default is ci is None or matches(case_of(item), default):
        return "default"
    return "slow" if matches(case_of(item), ci) else "nightly"


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(config, items):
    tiers = {item: tier(item) for item in items}
    for item, when in tiers.items():
        if when != "default":
            item.add_marker(when)
    config.stash[CHOICES] = tiers
    if config.option.minutes is not None:
        files = sorted({item.path for item in items})
        random.Random(config.option.day).shuffle(files)
        items.sort(key=lambda item: files.index(item.path))


def pytest_runtest_setup(item):
    minutes = item.config.option.minutes
    if minutes is not None and time.monotonic() - BEGIN > 60 * minutes:
        pytest.skip("no time left")


class ByProblem(LoadScopeScheduling):
    """Tests of one problem in one process, and those of a file: they share programs.

    Not by `--dist=loadgroup`, whose groups pytest 9.2 ignores (pytest-xdist 3.8).
    """

    problems = frozenset()

    def _split_scope(self, nodeid):
        file, _, test = nodeid.partition("::")
        case = test.partition("[")[2].removesuffix("]")
        return case if case in self.problems else file


def pytest_xdist_make_scheduler(config, log):
    # Not at the top: the package is imported after the hook that checks annotations.
    names = importlib.import_module("problems").PROBLEMS
    scheduler = ByProblem(config, log)
    scheduler.problems = frozenset(names)
    return scheduler


@pytest.fixture(autouse=True)
def _free_compiled_programs():
    if next(TESTS) % 20 == 0 and MAPS.exists():
        most = int(MOST_MAPS.read_text()) if MOST_MAPS.exists() else 65_530
        if MAPS.read_bytes().count(b"\n") > most // 2:
            jax.clear_caches()
            eqx.clear_caches()
            gc.collect()


@pytest.fixture(autouse=True)
def _as_users_have_it(request):
    """Optimised, without checks of the annotations: where the claim is about that."""
    optimised = request.node.get_closest_marker("optimised") is not None
    untyped = request.node.get_closest_marker("untyped") is not None
    jax.config.update("jax_disable_most_optimizations", not optimised)
    jaxtyping.config.update("jaxtyping_disable", untyped)
