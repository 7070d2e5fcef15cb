from __future__ import annotations

import pytest
from py4j.protocol import Py4JNetworkError

from jobs.errors import BusyError, explain, pack_error, unpack_error, unreadable_input
from udfs.errors import EngineError, ModelError, SpecError, UnsafeModelError


@pytest.mark.parametrize("kind", [ModelError, SpecError, UnsafeModelError, EngineError])
def test_an_executors_error_is_found_in_sparks_pages(kind: type[Exception]) -> None:
    error = kind("the weights are gone, fetch them again")
    text = f'Job aborted\n  File "x.py", line 3\n{type(error).__module__}.{kind.__name__}: {error}\n\tat org.apache'
    assert explain(RuntimeError(text)) == str(error)


def test_the_deepest_cause_is_told() -> None:
    text = "Job aborted.\n\tat a\nCaused by: java.lang.Outer: x\n\tat b\nCaused by: java.io.IOException: No space left"
    assert explain(RuntimeError(text)) == "java.io.IOException: No space left"


def test_an_error_keeps_its_exit_code_on_its_way_through_spark() -> None:
    found = unpack_error(f"Traceback\n RuntimeError: {pack_error(BusyError('taken over'))}\n at org.apache")
    assert isinstance(found, BusyError)
    assert (found.exit_code, str(found)) == (2, "taken over")


def test_an_input_is_not_to_blame_for_a_spark_that_was_killed() -> None:
    assert unreadable_input(Py4JNetworkError("Answer from Java side is empty")).exit_code == 5
    assert unreadable_input(ValueError("no such path")).exit_code == 2


_STACK = "\tat org.apache.spark.A.b(A.scala:1)\n\tat java.base/java.lang.Thread.run(Thread.java:840)\n"
_CALLING = "An error occurred while calling o142.parquet.\n: "
# As Spark 4 told them, with shorter stacks; and what has to be left of them.
TOLD = {
    "no cause": (
        f"{_CALLING}org.apache.hadoop.fs.ParentNotDirectoryException: Parent path is not a directory: file:/data/x\n"
        f"{_STACK}",
        "org.apache.hadoop.fs.ParentNotDirectoryException: Parent path is not a directory: file:/data/x",
    ),
    "several lines": (
        "[CONFLICTING_PARTITION_COLUMN_NAMES] Conflicting partition column names detected:\n\n"
        "\tPartition column name list #0: b\n\nPlease check the following directories:\n\n"
        "\tfile:/in/b=1\n\tfile:/in/a=1 SQLSTATE: KD009",
        "[CONFLICTING_PARTITION_COLUMN_NAMES] Conflicting partition column names detected: Partition column name list "
        "#0: b Please check the following directories: file:/in/b=1 file:/in/a=1",
    ),
    "python": (
        "An exception was thrown from the Python worker:\nTraceback (most recent call last):\n"
        '  File "/tmp/errs.py", line 33, in boom\n    open("/mnt/x")\n    ^^^^\n'
        "OSError: [Errno 28] No space left on device: '/mnt/x'",
        "An exception was thrown from the Python worker: OSError: [Errno 28] No space left on device: '/mnt/x'",
    ),
    "a cause without a path": (
        f"{_CALLING}org.apache.spark.SparkException: Job aborted due to stage failure: Task 1 in stage 15.0 failed\n"
        f"{_STACK}\nDriver stacktrace:\n{_STACK}"
        "Caused by: org.apache.spark.SparkException: [TASK_WRITE_FAILED] Task failed while writing to s3a://b/out. "
        f"SQLSTATE: 58030\n{_STACK}\t... 1 more\nCaused by: java.io.IOException: No space left on device\n{_STACK}",
        "java.io.IOException: No space left on device (org.apache.spark.SparkException: [TASK_WRITE_FAILED] Task "
        "failed while writing to s3a://b/out.)",
    ),
    "a cause with a path": (
        f"{_CALLING}org.apache.spark.SparkException: Job aborted.\n{_STACK}"
        "Caused by: org.apache.hadoop.security.AccessControlException: Permission denied: user=u, access=WRITE,\n"
        f'inode="/out":hdfs:hdfs:drwxr-xr-x\n{_STACK}',
        "org.apache.hadoop.security.AccessControlException: Permission denied: user=u, access=WRITE, "
        'inode="/out":hdfs:hdfs:drwxr-xr-x',
    ),
    "a plan": (
        "[UNRESOLVED_COLUMN] A column `x` cannot be resolved. SQLSTATE: 42703;\n'Project ['x]\n+- Range (0, 3)",
        "[UNRESOLVED_COLUMN] A column `x` cannot be resolved.",
    ),
}


@pytest.mark.parametrize(("text", "left"), TOLD.values(), ids=TOLD)
def test_of_sparks_pages_a_line_is_left_that_keeps_the_paths(text: str, left: str) -> None:
    assert explain(RuntimeError(text)) == left


def test_a_list_of_very_many_files_is_cut() -> None:
    text = "[X] Check:\n" + "\n".join(f"\tfile:/in/part={n}" for n in range(10_000))
    assert explain(RuntimeError(text)).startswith("[X] Check: file:/in/part=0 file:/in/part=1 ")
    assert len(explain(RuntimeError(text))) < 1_100


def test_an_error_without_a_word_is_told_by_its_name() -> None:
    assert explain(RuntimeError("")) == "RuntimeError"


def test_what_a_python_worker_raised_is_told_by_its_name() -> None:
    pages = (
        "Job aborted\nCaused by: org.apache.spark.api.python.PythonException: An exception was thrown from the Python "
        'worker:\nTraceback (most recent call last):\n  File "x.py", line 3, in f\n    raise ValueError\n'
        "pyarrow.lib.ArrowInvalid: Casting field 'a'\n\n\tat org.apache.spark.api"
    )
    told = "An exception was thrown from the Python worker: pyarrow.lib.ArrowInvalid: Casting field 'a'"
    assert explain(RuntimeError(pages)).endswith(told)
    assert "said no more" in explain(RuntimeError("An exception was thrown from the Python worker:"))
