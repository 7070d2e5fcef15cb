"""An engine is found and started, or it is told why not."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.engine_faults import read_lines
from tests.engine_rows import TEXTS, Faults, codes_of, rows_of
from udfs.errors import EngineError, ModelError
from udfs.spec import ScoreSpec


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("raise", "IndexError: index out of range in self"),
        ("segfault", r"ended before it was ready\. Its log says: Fatal Python error: Segmentation fault"),
        ("kill", r"ended before it was ready\. It left no word"),
    ],
)
def test_an_engine_that_does_not_start_is_told_with_its_last_words(
    way: str, reason: str, spec: ScoreSpec, faults: Faults
) -> None:
    starts = faults(at_start=way)
    with pytest.raises(EngineError, match=reason):
        rows_of(TEXTS, spec)
    assert len(read_lines(starts)) == (1 if way == "raise" else 2)  # what ends without a word is tried again


def test_a_model_that_does_not_load_is_told_once_to_all_who_wait(
    spec: ScoreSpec, encoder: str, faults: Faults, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(encoder, broken)
    save_file({"other": np.zeros(1)}, broken / "model.safetensors")
    starts = faults()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(rows_of, ["tea"], replace(spec, model=str(broken))) for _ in range(4)]
        for future in asked:
            with pytest.raises(ModelError, match=r"lacks .* of the weights"):
                future.result()
    assert len(read_lines(starts)) == 1


def test_a_model_is_found_from_where_the_worker_is(
    spec: ScoreSpec, encoder: str, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(encoder).parent)
    assert codes_of(rows_of(["tea"], replace(spec, model=f"./{Path(encoder).name}"))) == [None]


def test_a_place_that_cannot_be_used_is_told(spec: ScoreSpec, top: Path) -> None:
    top.write_text("in the way")
    with pytest.raises(EngineError, match=r"cannot be used: .*set TMPDIR"):
        rows_of(["tea"], spec)


def test_a_directory_that_others_can_enter_is_refused(spec: ScoreSpec, top: Path) -> None:
    top.mkdir(mode=0o755)
    with pytest.raises(EngineError, match="only user"):
        rows_of(["tea"], spec)
