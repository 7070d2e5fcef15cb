"""The Spark session: the one that is there, or a new one whose log is kept off the terminal."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

import udfs
from jobs.errors import SPARK_ERRORS, SessionError, explain
from jobs.json_log import is_json, log_lines
from jobs.settings import SparkSettings
from jobs.spark.java import find_java

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_NEW = {"spark.app.name": "gristmill", "spark.ui.showConsoleProgress": "false"}
# On one machine nothing listens to the outside, and a laptop's VPN cannot confuse Spark about its own address.
_LOCAL = {
    "spark.ui.enabled": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
}
# There the JVM only moves bytes while Python computes. On a few cores it starts 2 s sooner and leaves them alone with
# the light compiler and collector; with more of them it has to keep up with a faster device.
_FEW_CORES, _FEW_JVM, _MANY_JVM = 4, "-XX:+UseSerialGC -XX:TieredStopAtLevel=1", "-XX:+UseParallelGC"
_SPARKS_OWN = {"SPARK_DRIVER_MEMORY", "SPARK_CONF_DIR", "SPARK_HOME"}  # somebody has set Spark up, its heap perhaps too
_HEAP_PART, _LEAST_HEAP, _MOST_HEAP = 8, 1 << 30, 8 << 30  # of the machine's memory
_JAVA = "spark.driver.extraJavaOptions"
# Where Spark and its workers write what they would else print; kept when a job fails.
LOG_FILE = Path(tempfile.gettempdir()) / f"gristmill-spark-{os.getpid()}.log"


def open_session(settings: SparkSettings, *, spark_log: str | None = None) -> SparkSession:
    """The active session, spark-submit's, Databricks' or Connect's as it is; else a new one as the settings say.

    Args:
        settings: Master and conf of a new session; under spark-submit the master is left alone.
        spark_log: Level at which a new session logs on the terminal; None sends warnings to LOG_FILE.

    Raises:
        JavaError: A new session needs a Java that is not there.
        SessionError: Spark does not start with these settings.
    """
    from pyspark.sql import SparkSession

    if active := SparkSession.getActiveSession():
        return active
    conf: dict[str, str] = {}
    builder, hidden = SparkSession.builder, False
    if _is_ours():
        find_java()
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # workers run in this virtual environment
        builder, hidden = builder.master(settings.master), spark_log is None
        local = is_local(settings)
        conf = _NEW | (fit_machine() if local else {})
        java = f"{_log_options(spark_log or 'warn')} {conf.get(_JAVA, '')}"
        conf |= {_JAVA: java}
    for key, value in {**conf, **settings.conf}.items():
        builder = builder.config(key, str(value).lower() if isinstance(value, bool) else str(value))
    try:
        with _stderr_to(LOG_FILE) if hidden else _stderr_as_json() if is_json() else contextlib.nullcontext():
            session = builder.getOrCreate()
    except SPARK_ERRORS as error:
        raise SessionError(f"Spark does not start on {settings.master}: {explain(error)}") from error
    ship_code(session)
    return session


def fit_machine() -> dict[str, str]:
    """Conf of a Java virtual machine that is driver and executor on this machine: heap, compiler and collector."""
    java = _FEW_JVM if (os.cpu_count() or 1) < _FEW_CORES else _MANY_JVM
    conf = {**_LOCAL, _JAVA: java}
    if _SPARKS_OWN & os.environ.keys():
        return conf
    heap = min(_MOST_HEAP, max(_LEAST_HEAP, psutil.virtual_memory().total // _HEAP_PART))
    return {**conf, "spark.driver.memory": f"{heap >> 20}m"}


def has_gpu(spark: SparkSession) -> bool:
    """Executors have GPUs, as far as the driver can tell: by Spark's own setting, or as they are this machine."""
    if int(spark.conf.get("spark.executor.resource.gpu.amount", "0") or 0):
        return True
    is_here = str(spark.conf.get("spark.master", "")).startswith("local[")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    return is_here and not hidden and any(Path("/dev").glob("nvidia[0-9]*"))


def is_local(settings: SparkSettings) -> bool:
    """A new session starts its Java virtual machine here, and that is its one executor."""
    return _is_ours() and str(settings.conf.get("spark.master", settings.master)).startswith("local[")


def _is_ours() -> bool:
    """It is for us to start Spark; else spark-submit or Connect has begun it."""
    return not {"PYSPARK_GATEWAY_PORT", "SPARK_REMOTE"} & os.environ.keys()


def ship_code(session: SparkSession) -> None:
    """Give the executors this `udfs`, so that driver and executors always run the same code.

    Not needed where it was handed over with --py-files: it is then inside a zip already.
    """
    home = Path(udfs.__file__).parent
    if not home.is_dir():
        return
    folder = tempfile.mkdtemp(prefix="gristmill-")  # Spark copies from it whenever an executor starts
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = Path(folder) / "gristmill_udfs.zip"
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(home.rglob("*.py")):
            archive.write(path, Path("udfs") / path.relative_to(home))
    session.addArtifacts(str(target), pyfile=True)


@contextlib.contextmanager
def spark_conf(spark: SparkSession, conf: dict[str, str]) -> Iterator[None]:
    """Set session options for a while."""
    before = {key: spark.conf.get(key, None) for key in conf}
    try:
        for key, value in conf.items():
            spark.conf.set(key, value)
        yield
    finally:
        for key, old in before.items():
            spark.conf.unset(key) if old is None else spark.conf.set(key, old)


def many_files(spark: SparkSession) -> dict[str, str]:
    """Session options by which Spark reads thousands of small files in a few tasks, and not each in one of its own.

    By itself it takes a file for at least 4 MB, and looks at paths that are named in as many tasks as there are paths.
    """
    lookers = min(256, 8 * count_slots(spark))
    return {
        "spark.sql.files.openCostInBytes": str(64 << 10),
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": str(lookers),
    }


def _log_options(level: str) -> str:
    name = "log4j2-json.properties" if is_json() else "log4j2.properties"
    config = Path(__file__).resolve().with_name(name).as_uri()  # a space in the path is escaped
    return f"-Dlog4j2.configurationFile={config} -Dgristmill.log.level={level}"


@contextlib.contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Let processes that start meanwhile (the JVM, by it the workers) have a file for their standard error."""
    with path.open("ab") as log, _stderr_is(log.fileno()):
        yield


@contextlib.contextmanager
def _stderr_as_json() -> Iterator[None]:
    """As `_stderr_to`, and log what they write: not all of it is Spark's own log, which is JSON."""
    reader, writer = os.pipe()
    lines = os.fdopen(reader, encoding="utf-8", errors="replace")
    threading.Thread(target=log_lines, args=(lines,), name="gristmill-spark-log", daemon=True).start()
    try:
        with _stderr_is(writer):
            yield
    finally:
        os.close(writer)


@contextlib.contextmanager
def _stderr_is(descriptor: int) -> Iterator[None]:
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        os.dup2(descriptor, 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


@contextlib.contextmanager
def keep_noise() -> Iterator[None]:
    """Where the session's log is kept off the terminal, send after it what Spark's threads in Python say meanwhile.

    It is what py4j's and Spark's own threads print as a step fails or Java ends; the job tells it in a line of its own.
    """
    if not LOG_FILE.exists():
        yield
        return
    with LOG_FILE.open("a", buffering=1) as log, contextlib.redirect_stderr(log):
        yield


def count_slots(spark: SparkSession) -> int:
    """Tasks that run at once; Spark Connect does not tell, and is taken for a small cluster."""
    context = getattr(spark, "_sc", None)
    return context.defaultParallelism if context is not None else 16
