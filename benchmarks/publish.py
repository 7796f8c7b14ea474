"""Writes the tables and pictures of a run into README and documentation."""

import pathlib

from . import pictures, report, targets
from .results import Results


_ROOT = pathlib.Path(__file__).parent.parent


def publish(results: Results) -> None:
    """Replaces what stands between the markers of README and `docs/benchmarks.md`."""
    stated = report.stated(results)
    _replace(
        _ROOT / "README.md",
        {"benchmark": f"{report.like_with_like(results.main)}\n\n{stated}"},
    )
    tables = {
        "stated": stated,
        "targets": targets.table(results),
        "summary": report.summary(results.main),
        "shapes": report.shapes(results.shapes),
        "compile": report.pairs(results.compile_s, "s"),
        "memory": report.pairs(results.memory_mib, "MiB"),
        "contenders": report.contenders(results.main),
    }
    _replace(_ROOT / "docs" / "benchmarks.md", tables)
    pictures.draw(results, _ROOT / "docs" / "images")


def _replace(page: pathlib.Path, tables: dict[str, str]) -> None:
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        start, end = f"<!-- {name}:start -->\n", f"<!-- {name}:end -->"
        before, found_start, rest = text.partition(start)
        _, found_end, after = rest.partition(end)
        if not (found_start and found_end):
            raise SystemExit(f"{page} has no `{start.strip()}` … `{end}`.")
        text = f"{before}{start}{table}\n{end}{after}"
    page.write_text(text, encoding="utf-8")
