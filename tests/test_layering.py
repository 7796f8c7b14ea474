"""The floors of `docs/architecture.md`: its table is read and the imports checked."""

import ast
import graphlib
import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

import pseudojvp


_ROOT = pathlib.Path(__file__).parent.parent
_PACKAGE = _ROOT / "pseudojvp"
_MODULES = sorted(
    path.relative_to(_PACKAGE).as_posix() for path in _PACKAGE.rglob("*.py")
)
_each_module = pytest.mark.parametrize("module", _MODULES)


def _floors() -> dict[str, int]:
    """The folders in the table of floors, with their numbers."""
    page = (_ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)
    return {folder: int(floor) for floor, folder in rows}


def _folder(module: str) -> str:
    return module.split("/")[0]


def _tree(module: str) -> ast.Module:
    return ast.parse((_PACKAGE / module).read_text(encoding="utf-8"))


def _imports(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]


def _path_of(dotted: pathlib.PurePosixPath) -> str:
    """The file of a module or of a package, relative to the package."""
    as_module = dotted.with_suffix(".py").as_posix() if dotted.name else ""
    return as_module if as_module in _MODULES else (dotted / "__init__.py").as_posix()


def _internal_imports(module: str) -> set[str]:
    """The files of this package that `module` imports from."""
    found = set()
    for node in _imports(_tree(module)):
        if isinstance(node, ast.Import) or node.level == 0:
            continue
        base = pathlib.PurePosixPath(module)
        for _ in range(node.level):
            base = base.parent
        base = base.joinpath(*(node.module or "").split("."))
        for alias in node.names:
            submodule = (base / f"{alias.name}.py").as_posix()
            found.add(submodule if submodule in _MODULES else _path_of(base))
    return found


def _external_names(tree: ast.AST) -> set[str]:
    """Dotted names of what is imported from other packages."""
    names = set()
    for node in _imports(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_table_of_floors_lists_every_folder_and_no_other():
    assert sorted(_floors()) == sorted({_folder(m) for m in _MODULES if "/" in m})


def test_package_has_no_module_outside_of_the_floors():
    assert [module for module in _MODULES if "/" not in module] == ["__init__.py"]


def test_names_of_the_package_are_those_that_type_checkers_see():
    imports = {
        alias.asname: node.module
        for node in _imports(_tree("__init__.py"))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert set(imports) == set(pseudojvp.__all__) <= set(dir(pseudojvp))
    assert {
        name
        for name, module in imports.items()
        if getattr(importlib.import_module(f"pseudojvp.{module}"), name)
        is not getattr(pseudojvp, name)
    } == set()
    with pytest.raises(AttributeError, match="no attribute 'lstsqs'"):
        _ = pseudojvp.lstsqs  # type: ignore


def test_imports_are_found_at_all():
    assert "_solver/__init__.py" in _internal_imports("_map/rows.py")
    assert "_base/checks.py" in _internal_imports("_solver/orthogonal/qr.py")
    assert "_base/inexact.py" in _internal_imports("_front/sparse.py")


@_each_module
def test_module_imports_from_no_floor_above_its_own(module):
    floors = _floors() | {"__init__.py": 99}
    own = floors[_folder(module)]
    above = {name for name in _internal_imports(module) if floors[_folder(name)] > own}
    assert above == set()


@pytest.mark.slow  # a second
def test_modules_import_each_other_in_no_circle():
    imports = {module: _internal_imports(module) for module in _MODULES}
    order = graphlib.TopologicalSorter(imports).static_order()  # an error of a circle
    assert sorted(order) == _MODULES


@_each_module
def test_module_imports_its_own_package_by_relative_imports_only(module):
    roots = {name.split(".")[0] for name in _external_names(_tree(module))}
    assert "pseudojvp" not in roots


@_each_module
def test_module_has_no_import_inside_a_function(module):
    functions = [
        node
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]
    assert [node.lineno for f in functions for node in _imports(f)] == []


@_each_module
def test_module_takes_nothing_private_from_other_packages(module):
    tree = _tree(module)
    imported = {
        name
        for name in _external_names(tree)
        if any(part.startswith("_") for part in name.split("."))
    }
    reached = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if re.match(
                r"(jax|lx|lineax|eqx|eqxi|equinox|optimistix)\._(?!_version)", name
            ):
                reached.add(name)
    assert (imported, reached) == (set(), set())


def test_semi_public_names_used_are_those_that_the_architecture_lists():
    doors = (r"(equinox|lineax|optimistix)\.internal", r"jax\.core", r"jax\.interpreters")
    doors += (r"jax\.extend\.core", r"jax\.experimental\.\w+")
    pattern = "|".join(doors)
    names = {name for module in _MODULES for name in _external_names(_tree(module))}
    used = {m.group() for name in names if (m := re.match(pattern, name))}
    page = (_ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert {name for name in used if f"`{name}`" not in page} == set()
    source = "".join((_PACKAGE / module).read_text("utf-8") for module in _MODULES)
    assert set(re.findall(r"jax\._src[\w.]*", source)) == {"jax._src.callback"}


@_each_module
def test_module_assigns_to_no_attribute_or_item_on_import(module):
    targets = [
        target
        for node in _tree(module).body
        if isinstance(node, ast.Assign | ast.AugAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    assert [ast.unparse(t) for t in targets if not isinstance(t, ast.Name)] == []


@pytest.fixture(scope="module")
def imported():
    """What a process prints that imports the package."""
    script = """
import os, warnings
import jax, lineax, numpy, optimistix
before = dict(jax.config.values), dict(os.environ), list(warnings.filters)
import pseudojvp
for name in pseudojvp.__all__:
    getattr(pseudojvp, name)
after = dict(jax.config.values), dict(os.environ), list(warnings.filters)
print(before == after)
jax.config.update("jax_num_cpu_devices", 3)
print(len(jax.devices()))
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=True,
        env=environment,
        text=True,
        timeout=300,
    )
    return process.stdout.split()


@pytest.mark.slow  # two seconds
def test_importing_the_package_changes_neither_jax_settings_nor_the_environment(imported):
    assert imported[0] == "True"


@pytest.mark.slow  # two seconds
def test_importing_the_package_starts_no_device(imported):
    """Or `jax.distributed.initialize` and the number of devices would come too late."""
    assert imported[1] == "3"
