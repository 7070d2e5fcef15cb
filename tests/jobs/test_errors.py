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
    assert unreadable_input(Py4JNetworkError("Answer from Java side is empty")).exit_code == 1
    assert unreadable_input(ValueError("no such path")).exit_code == 2


def test_what_a_python_worker_raised_is_told_by_its_name() -> None:
    pages = (
        "Job aborted\nCaused by: org.apache.spark.api.python.PythonException: An exception was thrown from the Python "
        'worker:\nTraceback (most recent call last):\n  File "x.py", line 3, in f\n    raise ValueError\n'
        "pyarrow.lib.ArrowInvalid: Casting field 'a'\n\n\tat org.apache.spark.api"
    )
    assert explain(RuntimeError(pages)) == "a Python worker raised pyarrow.lib.ArrowInvalid: Casting field 'a'"
    assert "said no more" in explain(RuntimeError("An exception was thrown from the Python worker:"))
