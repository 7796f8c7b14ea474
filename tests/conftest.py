"""What every test runs under, and how a test chooses which of its cases run when.

A case runs by default, in CI as well (`slow`), or before a release (`nightly`). A test of
many cases names those of the first two by patterns of what its id has in brackets,

    @pytest.mark.default("tall-complex-QR")
    @pytest.mark.ci("*-QR", "*-SVD")

and the rest is `nightly`. A case whose parameters are marked `slow` or `nightly` runs
then. `test_selection.py` checks that each pattern chooses something.
"""

import fnmatch
import gc
import importlib
import os
import pathlib

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
if jax.__version_info__ < (0, 11):  # two thirds of the time; later XLA has no choice here
    os.environ["XLA_FLAGS"] = " ".join(
        [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_use_fusion_emitters=false"]
    )
# What has been compiled before is not compiled again, other than what can raise. Keeping
# it takes a fifth of the time of a first run, which CI does without.
if not {"CI", "PSEUDOJVP_COLD"} & set(os.environ):
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# Each compiled program takes memory maps, of which Linux allows a process 65,530.
_MOST_MAPS = 40_000


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


@pytest.fixture(scope="module", autouse=True)
def _free_compiled_programs():
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MOST_MAPS:
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
