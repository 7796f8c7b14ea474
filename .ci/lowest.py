"""Prints the lowest versions that pyproject.toml allows, as constraints for pip.

    python .ci/lowest.py > lowest.txt && pip install -e ".[tests]" -c lowest.txt

Those of the package and of the extra `tests`.
"""

import pathlib
import re
import tomllib


def lowest(requirements):
    """Each `name>=version` as `name==version`; another form is an error."""
    for requirement in requirements:
        name, version = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups()
        yield f"{name}=={version}"


if __name__ == "__main__":
    file = pathlib.Path(__file__).parent.parent / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    named = project["dependencies"] + project["optional-dependencies"]["tests"]
    print("\n".join(sorted(set(lowest(named)))))
