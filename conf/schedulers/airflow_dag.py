"""Airflow 3: score what is new each night, until six in the morning.

Copy into the DAGs folder. `gristmill` is on the worker's path; GRISTMILL_CONF names the job's YAML file.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

CONF = os.environ.get("GRISTMILL_CONF", "/opt/jobs/embeddings.yaml")
NO_USE_TO_TRY_AGAIN = (2, 3)  # something is wrong, or too many rows failed: somebody has to look


@dag(schedule="0 1 * * *", start_date=datetime(2026, 1, 1), catchup=False, max_active_runs=1)
def gristmill_nightly() -> None:
    @task(retries=2, retry_delay=timedelta(minutes=5))
    def score(conf: str) -> dict[str, Any]:
        """What the run counted; a task that is skipped has left rows for the next night."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "result.json")
            until = f"limits.deadline='{datetime.now():%Y-%m-%d} 06:00'"  # also of a second try that begins later
            command = ["gristmill", "score", conf, "--set", until, "--result", str(file)]
            code = subprocess.run(command, check=False).returncode
            result = json.loads(file.read_text()) if file.exists() else {}
        told = f"exit code {code}: {result.get('error')}; report: {result.get('report')}"
        if code == 4:
            raise AirflowSkipException(f"the deadline came first, left: {result['left']}; {told}")
        if code in NO_USE_TO_TRY_AGAIN:
            raise AirflowFailException(told)
        if code:
            raise AirflowException(told)  # Airflow tries again, and the same command goes on
        return result

    score(CONF)


gristmill_nightly()
