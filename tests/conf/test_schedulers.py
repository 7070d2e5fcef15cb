"""Airflow, Dagster and cron: what each makes of an exit code; their commands are run for real."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

SCHEDULERS = ROOT / "conf/schedulers"
_ENDS = {0: "completed", 1: "failed", 2: "refused", 3: "failed", 4: "expired", 5: "failed"}


def _install(folder: Path, body: str) -> None:
    """A command `gristmill`, first on the path of what is started."""
    folder.mkdir(exist_ok=True)
    (folder / "gristmill").write_text(f"#!{sys.executable}\n{body}")
    (folder / "gristmill").chmod(0o755)


@pytest.fixture
def ends_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Have `gristmill` end with these exit codes, one a call; returns the file with a line for each call."""

    def make(*codes: int) -> Path:
        calls = tmp_path / "calls"
        _install(
            tmp_path / "bin",
            f"import json, sys\ncalls = open({str(calls)!r}, 'a+')\ncalls.seek(0)\n"
            f"code = {list(codes)}[len(calls.readlines())]\ncalls.write(' '.join(sys.argv[1:]) + '\\n')\n"
            f"told = {{'run_id': 'r1', 'status': {_ENDS}[code], 'exit_code': code, 'left': {{'rows': 7}}}}\n"
            "told |= {'error': 'why', 'report': '/r.json'}\n"
            "open(sys.argv[sys.argv.index('--result') + 1], 'w').write(json.dumps(told))\nsys.exit(code)\n",
        )
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        return calls

    return make


@pytest.fixture
def gristmill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command."""
    _install(tmp_path / "bin", f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom jobs.cli import main\nmain()\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


class _Raised(Exception):
    """What a scheduler's own exceptions are here."""

    def __init__(self, text: str = "", **told: Any) -> None:
        super().__init__(text)
        self.told = told


def _module(name: str, **held: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(held)
    return module


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Call the DAG's task; Airflow is stood in for by what the file uses of it."""
    kinds = {name: type(name, (_Raised,), {}) for name in ("AirflowFailException", "AirflowSkipException")}
    called: list[Callable[[str], Any]] = []

    def task(**options: Any) -> Callable[[Any], Any]:
        assert options["retries"] > 0
        return lambda function: lambda conf: called.append(function)

    sdk = _module("airflow.sdk", dag=lambda **_: lambda function: function, task=task)
    exceptions = _module("airflow.sdk.exceptions", AirflowException=type("AirflowException", (_Raised,), {}), **kinds)
    for module in (_module("airflow"), sdk, exceptions):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def call(conf: str) -> Any:
        exec(compile((SCHEDULERS / "airflow_dag.py").read_text(), "airflow_dag.py", "exec"), {"__name__": "dag"})
        return called[-1](conf)

    return call


@pytest.fixture
def dagster(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Materialize the asset; Dagster is stood in for likewise."""
    made = _module(
        "dagster",
        asset=lambda **options: lambda function: function,
        RetryPolicy=lambda **_: None,
        AssetExecutionContext=object,
        MaterializeResult=lambda metadata: metadata,
        Failure=type("Failure", (_Raised,), {}),
        ScheduleDefinition=lambda **_: None,
        Definitions=lambda **_: None,
    )
    monkeypatch.setitem(sys.modules, "dagster", made)

    def call(conf: str) -> Any:
        monkeypatch.setenv("GRISTMILL_CONF", conf)
        held: dict[str, Any] = {"__name__": "assets"}
        exec(compile((SCHEDULERS / "dagster_assets.py").read_text(), "dagster_assets.py", "exec"), held)
        log = types.SimpleNamespace(warning=lambda text: None)
        return held["embeddings"](types.SimpleNamespace(log=log))

    return call


@pytest.mark.parametrize(
    ("code", "raised"),
    [
        (0, None),
        (1, "AirflowException"),
        (2, "AirflowFailException"),
        (3, "AirflowFailException"),
        (4, "AirflowSkipException"),
        (5, "AirflowException"),
    ],
)
def test_airflow_tells_a_deadline_from_failures_and_these_from_what_is_tried_again(
    airflow: Callable[[str], Any], ends_with: Callable[..., Path], code: int, raised: str | None
) -> None:
    calls = ends_with(code)
    if raised is None:
        assert airflow("job.yaml")["run_id"] == "r1"
    else:
        with pytest.raises(_Raised, match=r"/r\.json") as caught:
            airflow("job.yaml")
        assert type(caught.value).__name__ == raised
    until = f"{datetime.now():%Y-%m-%d} 06:00"
    assert calls.read_text().startswith(f"score job.yaml --set limits.deadline='{until}' --result ")


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5])
def test_dagster_materializes_what_a_deadline_left_room_for_and_tries_no_failure_twice(
    dagster: Callable[[str], Any], ends_with: Callable[..., Path], code: int
) -> None:
    ends_with(code)
    if code in (0, 4):
        assert dagster("job.yaml")["status"] == {0: "completed", 4: "expired"}[code]
        return
    with pytest.raises(_Raised, match=f"exit code {code}: why") as caught:
        dagster("job.yaml")
    assert caught.value.told.get("allow_retries", True) == (code in (1, 5))


def _nightly(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCHEDULERS / "nightly.sh"), *map(str, args)], capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.parametrize(
    ("codes", "ends", "calls", "told"),
    [
        ([0], 0, 1, ""),
        ([4], 4, 1, "the deadline came first"),
        ([3], 3, 1, "too many rows failed"),
        ([2], 2, 1, "exit code 2"),
        ([5, 1, 0], 0, 3, "try 2 ended with exit code 1"),
        ([1, 1, 1], 1, 3, "exit code 1; see"),
        ([1, 4], 4, 2, "the deadline came first"),
    ],
)
def test_cron_keeps_the_exit_code_and_tries_again_where_that_helps(
    tmp_path: Path, ends_with: Callable[..., Path], codes: list[int], ends: int, calls: int, told: str
) -> None:
    file = ends_with(*codes)
    done = _nightly("job.yaml", tmp_path / "result.json", "limits.deadline=2h", "score.max_tokens=64")
    assert (done.returncode, done.stdout) == (ends, "")
    assert told in done.stderr
    assert (done.stderr == "") == (codes == [0])
    lines = file.read_text().splitlines()
    assert len(lines) == calls
    assert lines[0].startswith("score job.yaml --set limits.deadline=2h --set score.max_tokens=64 --result ")


def test_cron_starts_nothing_while_the_last_run_goes_on(tmp_path: Path, ends_with: Callable[..., Path]) -> None:
    ends_with(0)
    with (tmp_path / "result.json.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = _nightly("job.yaml", tmp_path / "result.json")
    assert (done.returncode, (tmp_path / "calls").exists()) == (75, False)
    assert "still goes on" in done.stderr


@pytest.mark.long
@pytest.mark.cluster
def test_the_real_command_is_read_by_all_three(
    write_job: Callable[..., Path],
    tmp_path: Path,
    gristmill: None,
    airflow: Callable[[str], Any],
    dagster: Callable[[str], Any],
) -> None:
    job = write_job()
    assert _nightly(job, tmp_path / "result.json").returncode == 0
    told = json.loads((tmp_path / "result.json").read_text())
    assert (told["status"], told["rows"], told["failed_by_code"]) == ("completed", 3, {"empty_input": 1})
    assert json.loads(Path(told["report"]).read_text())["run_id"] == told["run_id"]
    assert airflow(str(job))["rows"] == 0  # nothing is new
    assert dagster(str(job))["status"] == "completed"
    strict = write_job(limits={"max_error_rate": 0.1}, output={"path": str(tmp_path / "strict")})
    with pytest.raises(_Raised, match="exit code 3: 1 of 3 rows failed"):
        airflow(str(strict))
    assert _nightly(strict, tmp_path / "result.json").returncode == 3


@pytest.mark.parametrize("path", sorted(SCHEDULERS.glob("*.py")), ids=lambda path: path.name)
def test_each_is_python_that_names_the_command_as_it_is(path: Path) -> None:
    import typer.main

    from jobs.cli import app

    options = {name for parameter in typer.main.get_command(app).commands["score"].params for name in parameter.opts}
    lists = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.List)]
    words = [e.value for node in lists for e in node.elts if isinstance(e, ast.Constant)]
    assert words[:2] == ["gristmill", "score"]
    assert {word for word in words if str(word).startswith("--")} <= options
