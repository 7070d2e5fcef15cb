"""Have engines start while the driver still starts Spark, reads and plans; nothing waits for them.

What is wrong with a model or an engine is told by the job itself, when its first task asks for the engine.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil

from jobs.errors import SPARK_ERRORS
from jobs.serving import list_specs
from jobs.settings import Settings, SparkSettings
from jobs.spark.session import count_slots, is_local
from udfs.errors import GristmillError
from udfs.executor import executor_of
from udfs.factory import make_starter
from udfs.wire.home import EngineId
from udfs.worker.process import reach_engine

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_POLL_S = 0.1
_SUBMIT = "org.apache.spark.deploy.SparkSubmit"


def start_engines(spark: SparkSession, settings: Settings) -> None:
    """Have the executors begin to load the model."""
    from pyspark.sql import functions as F

    def run() -> None:
        with contextlib.suppress(*SPARK_ERRORS):
            slots = count_slots(spark)
            for spec in list_specs(settings):
                rows = spark.range(0, slots, 1, slots).select(make_starter(spec)(F.col("id")))
                rows.write.format("noop").mode("overwrite").save()

    threading.Thread(target=run, name="gristmill-start", daemon=True).start()


@contextlib.contextmanager
def start_beside_spark(settings: Settings) -> Iterator[None]:
    """Start the engine of a local master while the body starts Spark, as soon as there is the process to belong to.

    That is the Java virtual machine, the one executor that there will be.
    """
    opened = threading.Event()

    def run() -> None:
        while not opened.wait(_POLL_S):
            if pid := _find_spark():
                with contextlib.suppress(GristmillError, psutil.Error):
                    for spec in list_specs(settings):
                        reach_engine(EngineId(spec, None, executor_of(pid)))
                return

    if is_local(settings.spark) and _shares_environment(settings.spark):
        threading.Thread(target=run, name="gristmill-start-beside", daemon=True).start()
    try:
        yield
    finally:
        opened.set()


def _find_spark() -> int | None:
    """The Java virtual machine that Spark runs in, once there is one; another only tells its version."""
    with contextlib.suppress(psutil.Error):
        children = psutil.Process().children()
        return next((c.pid for c in children if c.name() == "java" and _SUBMIT in c.cmdline()), None)
    return None


def _shares_environment(settings: SparkSettings) -> bool:
    """Spark's workers run in this process's environment: in another one they would look for an engine of their own."""
    other = ("spark.pyspark.python", "spark.executorEnv.")
    python = os.environ.get("PYSPARK_PYTHON", sys.executable)
    return python == sys.executable and not any(key.startswith(other) for key in settings.conf)
