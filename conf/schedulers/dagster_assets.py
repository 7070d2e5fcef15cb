"""Dagster: embeddings as an asset. `dagster dev -f conf/schedulers/dagster_assets.py` shows it.

`gristmill` is on the path; GRISTMILL_CONF names the job's YAML file.
"""

import json
import os
import subprocess
import tempfile
from datetime import datetime
from pathlib import Path

import dagster

CONF = os.environ.get("GRISTMILL_CONF", "/opt/jobs/embeddings.yaml")
COUNTS = ("run_id", "status", "rows", "succeeded", "failed", "failed_by_code", "left", "output", "report")


@dagster.asset(retry_policy=dagster.RetryPolicy(max_retries=2, delay=300))
def embeddings(context: dagster.AssetExecutionContext) -> dagster.MaterializeResult:
    """Materialized as far as the deadline allowed: `status` is `completed` or `expired`, `left` what is not scored."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.json")
        until = f"limits.deadline='{datetime.now():%Y-%m-%d} 06:00'"  # also of a second try that begins later
        command = ["gristmill", "score", CONF, "--set", until, "--result", str(file)]
        code = subprocess.run(command, check=False).returncode
        result = json.loads(file.read_text()) if file.exists() else {}
    counts = {name: result.get(name) for name in COUNTS}
    if code == 4:
        context.log.warning(f"the deadline came first, left: {result['left']}")
    elif code in (2, 3):  # something is wrong, or too many rows failed: tried again, it would end the same
        raise dagster.Failure(f"exit code {code}: {result.get('error')}", metadata=counts, allow_retries=False)
    elif code:
        raise dagster.Failure(f"exit code {code}: {result.get('error')}", metadata=counts)
    return dagster.MaterializeResult(metadata=counts)


nightly = dagster.ScheduleDefinition(name="nightly", target=[embeddings], cron_schedule="0 1 * * *")
defs = dagster.Definitions(assets=[embeddings], schedules=[nightly])
