"""`--metrics FILE`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.errors import SettingsError
from jobs.telling.instruments import INSTRUMENTS
from jobs.telling.prometheus import MetricsFile, name_of
from tests.live_runs import ENGINE, make_live

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _read(path: Path) -> Samples:
    families = text_string_to_metric_families(path.read_text())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def _fail(line: str) -> None:
    raise AssertionError(line)


def test_a_run_is_told_in_prometheus_own_format(tmp_path: Path) -> None:
    MetricsFile(str(tmp_path / "m.prom"), _fail).show(make_live())
    told = _read(tmp_path / "m.prom")
    for (name, labels), value in {
        ("gristmill_rows_total", (("outcome", "succeeded"),)): 290,
        ("gristmill_rows_total", (("outcome", "failed"),)): 10,
        ("gristmill_failed_rows_total", (("code", "empty_input"),)): 9,
        ("gristmill_tokens_total", (("kind", "input"),)): 9000,
        ("gristmill_tokens_total", (("kind", "padding"),)): 500,
        ("gristmill_tokens_per_second", ()): 300,
        ("gristmill_increments_total", ()): 2,
        ("gristmill_left_seconds", ()): 75,
        ("gristmill_left_bytes", ()): 5000,
        ("gristmill_engine_starts_total", ()): 2,
        ("gristmill_engine_deaths_total", ()): 1,
        ("gristmill_engine_batch_size", ()): 10,
        ("gristmill_engine_padding", ()): pytest.approx(1 - 9100 / 9600),
        ("gristmill_engine_queue_items", ()): 12,
        ("gristmill_engine_tokens_per_second", ()): 1234.5,
        ("gristmill_gpu_memory_bytes", (("engine", ENGINE), ("kind", "used"))): 3 << 30,
    }.items():
        assert told[name, labels] == value, name
    assert list(tmp_path.iterdir()) == [tmp_path / "m.prom"]  # replaced as a whole


def test_what_is_not_known_is_not_there(tmp_path: Path) -> None:
    live = make_live(engines=None, seconds_left=None, left_bytes=None, increment=None, increment_rows=None)
    MetricsFile(str(tmp_path / "m.prom"), _fail).show(live)
    names = {name for name, _ in _read(tmp_path / "m.prom")}
    assert "gristmill_rows_total" in names
    assert not [name for name in names if re.search("engine|gpu|left|increment_rows", name)]


def test_names_are_prometheus_and_different() -> None:
    names = [name_of(instrument) for instrument in INSTRUMENTS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"gristmill(_[a-z]+)+", name) for name in names)


def test_labels_of_hostile_values_are_escaped(tmp_path: Path) -> None:
    MetricsFile(str(tmp_path / "m.prom"), _fail).show(make_live(model='a"b\\c\nd{}'))
    (labels,) = [dict(labels) for name, labels in _read(tmp_path / "m.prom") if name == "gristmill_run"]
    assert labels["model"] == 'a"b\\c\nd{}'


@pytest.mark.parametrize("name", ["none/m.prom", "."])
def test_a_file_that_cannot_be_one_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="name a file"):
        MetricsFile(str(tmp_path / name), _fail)


def test_a_file_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    (folder := tmp_path / "in").mkdir()
    told: list[str] = []
    file = MetricsFile(str(folder / "m.prom"), told.append)
    folder.rmdir()
    file.show(make_live())
    file.show(make_live())
    assert len(told) == 1
    assert "cannot be written" in told[0]
