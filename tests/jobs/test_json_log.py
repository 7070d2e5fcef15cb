"""`--log-json`: each line of the log is JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ROOT

WriteJob = Callable[..., Path]


def _run(code: str, *args: str | Path, **env: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and the lines of standard error."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stderr.splitlines()]


_MAIN = "from jobs.cli import main; main()"
_USE = "from jobs.json_log import *; import logging, threading, warnings; use_json(); "


def test_what_is_wrong_with_a_job_is_a_line_of_json(tmp_path: Path) -> None:
    code, lines = _run(_MAIN, "score", "nothing.yaml", "--log-json")
    assert code == 2
    (line,) = lines
    assert (line["level"], line["logger"]) == ("ERROR", "gristmill")
    assert "No such file" in line["message"]
    assert line["time"].endswith("+00:00")


@pytest.mark.parametrize(
    ("code", "level", "told"),
    [
        ("make_console().print('[yellow]warning:[/] two\\nlines')", "WARNING", "two\nlines"),
        ("make_console().print('plain ' * 200)", "INFO", "plain plain"),
        ("warnings.warn('odd')", "WARNING", "odd"),
        ("logging.getLogger('a.library').warning('100%% %s', 'odd')", "WARNING", "100% odd"),
        ("raise ValueError('torn')", "CRITICAL", "ValueError: torn"),
        ("t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()", "CRITICAL", "ZeroDivisionError"),
    ],
)
def test_whatever_is_logged_is_a_line_of_json(code: str, level: str, told: str) -> None:
    _, (line,) = _run(_USE + code)
    assert line["level"] == level
    assert told in line["message"]
    assert ("error" in line) == (level == "CRITICAL")


def test_what_another_process_writes_is_a_line_of_json_too() -> None:
    spoken = 'import io; log_lines(io.StringIO(\'WARNING: incubator\\n{"level": "WARN"}\\n\\n7\\n\'))'
    _, lines = _run(_USE + spoken)
    assert [line.get("message") for line in lines] == ["WARNING: incubator", None, "7"]
    assert lines[1] == {"level": "WARN"}


@pytest.mark.cluster
@pytest.mark.long
def test_a_job_logs_its_report_as_json_and_leaves_its_metrics(write_job: WriteJob, tmp_path: Path) -> None:
    metrics = tmp_path / "m.prom"
    code, lines = _run(_MAIN, "score", write_job(), "--log-json", "--metrics", metrics, "--spark-log", "info")
    assert code == 0
    (told,) = [line for line in lines if line["message"] == "report"]
    assert (told["report"]["rows"], told["report"]["failed_by_code"]) == (3, {"empty_input": 1})
    assert [line for line in lines if line["logger"].startswith("org.apache.spark")]  # Spark's own log too
    families = {f.name: f for f in text_string_to_metric_families(metrics.read_text())}
    rows = {s.labels["outcome"]: s.value for s in families["gristmill_rows"].samples}
    assert rows == {"succeeded": 2, "failed": 1}
    assert families["gristmill_engine_starts"].samples[0].value == 1
    assert families["gristmill_engine_items"].samples[0].value <= 2  # an engine tells every half second
    assert families["gristmill_run"].samples[0].labels["status"] == "completed"
