"""Keep the classes that Java loads for a job, so that Spark starts in half the time.

`python -m tests.share_classes FILE`.

Tests on several processes do this beside them, since they start Spark some hundred times. A virtual machine that is
given the file as its `SharedArchiveFile` maps the classes into its memory; one that has other classes, or finds no
file, loads them as ever.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.conftest import ROOT


def main(target: Path) -> None:
    part = target.with_suffix(f".{os.getpid()}")
    os.environ["SPARK_SUBMIT_OPTS"] = f"-XX:ArchiveClassesAtExit={part}"
    from jobs.job_file import load_settings
    from jobs.run import score

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(ROOT)
        settings = load_settings("conf/catalog_tagging.yaml", [f"output.path={folder}/out"])
        score(settings)
        _end_java()
    part.replace(target)


def _end_java() -> None:
    """Stop Spark, and wait until its virtual machine has written the file."""
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    session, gateway = SparkSession.getActiveSession(), SparkContext._gateway
    assert session is not None
    assert gateway is not None
    session.stop()
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait(timeout=120)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
