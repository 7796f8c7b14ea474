"""`python -m benchmarks.device`, on a CPU."""

import sys

import pytest

from benchmarks import device


def _run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["device", *map(str, arguments)])
    device.main()


def test_without_an_accelerator_nothing_is_measured(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match=r"no accelerator .* `--anyway`"):
        _run(monkeypatch, "--output", tmp_path / "table.md")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # a dozen programs
@pytest.mark.parametrize("job", ["rank 60: solve", "diffusion", "outside of"])
def test_table_has_right_values_in_both_precisions(monkeypatch, tmp_path, job):
    file = tmp_path / "table.md"
    _run(monkeypatch, "--anyway", "--only", job, "--output", file)
    rows = [line.split(" | ") for line in file.read_text().splitlines()[2:]]
    rows = [row for row in rows if len(row) == 10]
    assert [row[1] for row in rows if row[1]] == ["float64", "float32"]
    errors = [float(row[3]) for row in rows]
    assert max(errors) < 1e-3
    assert min(errors) < 1e-8
    assert "cpu (cpu)" in file.read_text()
