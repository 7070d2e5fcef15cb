"""Fetch Delta and Iceberg, and the Spark that they are for, once: `python -m tests.fetch_lakehouse`.

A jar in RumbleDB's wheel holds both, with all that they need; but it names neither among its data sources, so that a
jar beside it does. No code of the wheel is run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "jsoniq==3.0.2"
SPARK = ("pyspark==4.0.3", "py4j==0.10.9.9")
TARGET = Path(__file__).resolve().parent.parent / ".lakehouse"
SOURCES = ("org.apache.spark.sql.delta.sources.DeltaDataSource", "org.apache.iceberg.spark.source.IcebergSource")


def main() -> None:
    if TARGET.is_dir():
        print(f"{TARGET} is there")
        return
    part = TARGET.with_name(f"{TARGET.name}.part-{os.getpid()}")
    with tempfile.TemporaryDirectory() as folder:
        _pip("download", "--dest", folder, WHEEL)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".jar"))
            (part / "jars").mkdir(parents=True)
            with wheel.open(name) as found, (part / "jars/formats.jar").open("wb") as kept:
                shutil.copyfileobj(found, kept)
    with zipfile.ZipFile(part / "jars/names.jar", "w") as names:
        names.writestr("META-INF/services/org.apache.spark.sql.sources.DataSourceRegister", "\n".join(SOURCES) + "\n")
    _pip("install", "--target", str(part / "spark"), *SPARK)
    part.rename(TARGET)
    print(f"saved {TARGET}")


def _pip(command: str, *args: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", command, "--quiet", "--no-deps", *args], check=True)


if __name__ == "__main__":
    main()
