"""Mixed lines through run-batch, the driver killed again and again: `python -m tests.batch_soak FOLDER 10000`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

from tests.conftest import MINILM, ROOT

_SAID = "the kettle boils and a dog waits in garden while somebody reads about tea trains rivers or old maps"
_WORDS = _SAID.split()
_OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 0.7, "top_p": 0.9, "seed": 7},
    {"stop": ["."], "temperature": 0},
    {"presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"n": 2, "max_tokens": 4},
    {"logprobs": True, "top_logprobs": 2},
    {"response_format": {"type": "json_object"}},
]
_BROKEN = ("json", "array", "model", "url", "body", "stream", "image", "id", "field", "long", "twice", "deep")


def make_lines(count: int, *, seed: int = 1) -> tuple[list[str], dict[str, bool]]:
    """Lines, and by the ids of those that have one of their own, whether they are answered."""
    chance, lines, answered = random.Random(seed), list[str](), dict[str, bool]()
    for number in range(count):
        custom_id = f"line-{number}"
        text = " ".join(chance.choices(_WORDS, k=chance.randint(3, 20)))
        if number % 2:
            body: dict[str, Any] = {"model": "mini", "input": text}
            line = {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body}
        else:
            body = {"model": "smol", "max_tokens": 6, "messages": [{"role": "user", "content": text}]}
            body |= chance.choice(_OPTIONS)
            line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
        told, answered[custom_id] = json.dumps(line), True
        if number % 50 == 25:
            told, answered[custom_id] = _break(line, _BROKEN[number // 50 % len(_BROKEN)]), False
        lines.append(told)
    return lines, answered


def _break(line: dict[str, Any], how: str) -> str:
    body = line["body"]
    match how:
        case "json":
            return json.dumps(line)[:-3]
        case "array":
            return json.dumps([line])
        case "model":
            return json.dumps({**line, "body": {**body, "model": "nobody"}})
        case "url":
            return json.dumps({**line, "url": "/v1/moderations"})
        case "body":
            return json.dumps({**line, "body": "none"})
        case "stream":
            return json.dumps({**line, "body": {**body, "stream": True}})
        case "image":
            content = [{"type": "image_url", "image_url": {"url": "x"}}]
            told = {"model": "smol", "messages": [{"role": "user", "content": content}]}
            return json.dumps({**line, "url": "/v1/chat/completions", "body": told})
        case "id":
            return json.dumps({**line, "custom_id": 7})
        case "field":
            return json.dumps({**line, "body": {**body, "typo": 1}})
        case "long":
            return json.dumps({**line, "url": "/v1/embeddings", "body": {"model": "mini", "input": "tea " * 5000}})
        case "twice":
            return json.dumps({**line, "custom_id": "line-0"})
    return json.dumps({**line, "body": "@"}).replace('"@"', '{"a":' * 400 + "1" + "}" * 400)


def soak(folder: Path, count: int, *, writer: str, kills: int = 3) -> str:
    """Run, kill once more is committed, run again; each line has one line then, in its file and shape."""
    lines, answered = make_lines(count)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "requests.jsonl").write_text("\n".join(lines))
    command = [sys.executable, "-c", "from jobs.cli import main; main()", "run-batch"]
    command += [str(folder / "requests.jsonl"), str(folder / "results.jsonl")]
    command += ["--model", f"smol={writer}", "--model", f"mini={MINILM}", "--set", "input.increment_bytes=1"]
    chance, begun, killed = random.Random(2), time.monotonic(), 0
    rows = folder / "results.jsonl.gristmill/rows"
    while killed < kills:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(rows.glob("increment=*"))) <= killed:
            time.sleep(0.5)
        time.sleep(chance.uniform(0, 5))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        killed += 1
    subprocess.run(command, cwd=ROOT, check=True)
    check(folder, lines, answered)
    return f"{count} lines, {killed} kills, {time.monotonic() - begun:.0f} s"


def check(folder: Path, lines: list[str], answered: dict[str, bool]) -> None:
    """Each line has exactly one line.

    Raises:
        AssertionError: It has not.
    """
    good = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    bad = [json.loads(line) for line in (folder / "results.jsonl.errors").read_text().splitlines()]
    assert len(good) + len(bad) == len(lines), (len(good), len(bad), len(lines))
    wanted = Counter(custom_id for custom_id, is_good in answered.items() if is_good)
    assert Counter(line["custom_id"] for line in good) == wanted
    for line in good:
        body = line["response"]["body"]
        kind = ChatCompletion if body["object"] == "chat.completion" else CreateEmbeddingResponse
        kind.model_validate_json(json.dumps(body), strict=True)
    for line in bad:
        assert (line["response"] is None) != (line["error"] is None)
        assert line["response"] is None or line["response"]["status_code"] in (400, 404), line


if __name__ == "__main__":
    print(soak(Path(sys.argv[1]), int(sys.argv[2]), writer="models/smollm2-135m-instruct"))
