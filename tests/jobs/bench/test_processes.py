from __future__ import annotations

import sys
from pathlib import Path

from jobs.bench.processes import run_counted

SPIN = "import time\nuntil = time.process_time() + {}\nwhile time.process_time() < until: pass\ntime.sleep(0.3)"


def test_cpu_seconds_are_told_by_kind_of_process_even_of_one_that_outlives_the_command(tmp_path: Path) -> None:
    started = (
        f"import subprocess, sys\n"
        f"def run(*args): return subprocess.Popen([sys.executable, '-c', *args], start_new_session=True)\n"
        f"run({SPIN.format(0.6)!r}, 'udfs.engine')\n"
        f"run({SPIN.format(0.4)!r}, 'pyspark.daemon').wait()\n"
    )
    ran = run_counted([sys.executable, "-c", started], env={"SAID": "so"}, cwd=tmp_path, log=tmp_path / "log")
    assert ran.rc == 0
    assert 0.5 < ran.cpu["engine"] < 1.2
    assert 0.3 < ran.cpu["workers"] < 1.0
    assert ran.cpu["driver"] < 0.3
    assert ran.seconds > 0.7


def test_what_a_command_says_and_how_it_ends_is_kept(tmp_path: Path) -> None:
    said = "import os, sys; print(os.environ['SAID'], os.getcwd()); sys.exit(3)"
    ran = run_counted([sys.executable, "-c", said], env={"SAID": "so"}, cwd=tmp_path, log=tmp_path / "log")
    assert ran.rc == 3
    assert (tmp_path / "log").read_text().split() == ["so", str(tmp_path.resolve())]
