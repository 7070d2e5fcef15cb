"""The Java that Spark needs, looked for before Spark fails on it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from jobs.errors import JavaError

SUPPORTED = (17, 21)
_HOW = (
    "Spark 4 needs Java 17 or 21. Install one:\n"
    "  Debian, Ubuntu: sudo apt-get install openjdk-17-jre-headless\n"
    "  macOS:          brew install openjdk@17\n"
    "  conda:          conda install -c conda-forge openjdk=17\n"
    "or set JAVA_HOME to one that is there."
)


@dataclass(frozen=True)
class Java:
    """A Java on this machine: the path of `java`, and its major version."""

    path: str
    version: int


def find_java() -> Java:
    """The Java that Spark would take: JAVA_HOME's, else the PATH's.

    Raises:
        JavaError: There is none, it does not start, or Spark cannot use its version; says what to do.
    """
    home = os.environ.get("JAVA_HOME")
    path = os.path.join(home, "bin", "java") if home else shutil.which("java")
    if path is None:
        raise JavaError(f"no Java found.\n{_HOW}")
    try:
        told = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=30, check=True).stderr
    except (OSError, subprocess.SubprocessError) as error:
        where = f"JAVA_HOME is {home}, but {path}" if home else path
        raise JavaError(f"{where} does not start: {error}.\n{_HOW}") from error
    found = re.search(r'version "(\d+)(?:\.(\d+))?', told)
    version = int(found.group(2) if found.group(1) == "1" and found.group(2) else found.group(1)) if found else 0
    if version not in SUPPORTED:
        raise JavaError(f"{path} is Java {version or 'of an unknown version'}.\n{_HOW}")
    return Java(path, version)
