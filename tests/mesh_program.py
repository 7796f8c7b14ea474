"""What fronts and operators give on four devices, as JSON: `python mesh_program.py
"explicit lstsq" "shard_map lstsq" ...`. The number of devices is fixed when JAX starts.

Each error is that of all results and of their cotangents of a batch whose members are
sharded, from the truth by NumPy where one is known, and from one device otherwise. A
string is the error that JAX or the library raised.
"""

import functools as ft
import json
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from mesh_cases import USES, weights


DEVICES = 4
KINDS = {"explicit": AxisType.Explicit, "auto": AxisType.Auto}
MEMBERS = PartitionSpec("i")


def mesh(kind):
    return jax.make_mesh((DEVICES,), ("i",), axis_types=(kind,))


def with_cotangents(function):
    def loss(a, b):
        out = jax.tree.leaves(function(a, b))
        return sum(jnp.sum(weights(x) * jnp.sin(x)) for x in out), out

    def both(a, b):
        (_, out), cotangents = jax.value_and_grad(loss, (0, 1), has_aux=True)(a, b)
        return *out, *cotangents

    return jax.vmap(both)


def sharded(function, arrays, kind):
    sharding = NamedSharding(mesh(kind), MEMBERS)
    return jax.jit(function)(*(jax.device_put(array, sharding) for array in arrays))


def in_shard_map(function, arrays):
    specs = {"in_specs": (MEMBERS, MEMBERS), "out_specs": MEMBERS}
    mapped = jax.shard_map(function, mesh=mesh(AxisType.Auto), **specs)
    return jax.jit(mapped)(*arrays)


@ft.cache
def wanted_of(name: str) -> list:
    use = USES[name]
    if use.truth is None:
        return jax.jit(with_cotangents(use.function))(*use.arrays)
    each = [use.truth(*member) for member in zip(*use.arrays, strict=True)]
    return [np.stack(part) for part in zip(*each, strict=True)]


def error_of(name: str, setting: str) -> Any:
    use, wanted = USES[name], wanted_of(name)
    function = with_cotangents(use.function)
    try:
        if setting == "shard_map":
            got = in_shard_map(function, use.arrays)
        else:
            got = sharded(function, use.arrays, KINDS[setting])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    # Zeros, the cotangent of what is not used, are a constant, which may lie anywhere.
    if not all(leaf.sharding.spec[:1] == ("i",) or not np.any(leaf) for leaf in got):
        return "not sharded"
    pairs = [(x, y) for x, y in zip(got, wanted, strict=True) if x.size]
    sizes = [max(np.abs(y).max(), 1e-6) for _, y in pairs]
    return float(
        np.max([np.abs(x - y).max() / s for (x, y), s in zip(pairs, sizes, strict=True)])
    )


def moved(name: str, setting: str) -> list[str]:
    """The types of what is moved between devices."""
    use = USES[name]
    sharding = NamedSharding(mesh(KINDS[setting]), MEMBERS)
    arrays = (jax.device_put(array, sharding) for array in use.arrays)
    program = jax.jit(with_cotangents(use.function)).lower(*arrays).compile()
    collective = r"= (.*) (?:all-\w+|collective-permute|reduce-scatter)\("
    return re.findall(collective, program.as_text())


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    told = {}
    for name in sys.argv[1:]:
        *moves, on, use = name.split(" ")
        told[name] = (moved if moves else error_of)(use, on)
    print(json.dumps(told))
