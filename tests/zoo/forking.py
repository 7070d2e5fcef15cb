"""Each architecture in a process of its own, which has a time and a memory that it may take."""

from __future__ import annotations

import faulthandler
import functools
import json
import multiprocessing
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.zoo.building import build
from tests.zoo.comparing import Found, Zone, compare, takes_no_text

_MEMORY = 12 << 30  # bytes of address space


def run_apart(zone: Zone, model_type: str, *, limit_s: float) -> Found:
    """Compare in a process that is forked from this one, where torch and transformers are imported already.

    What hangs, or ends without an answer, is `died`.
    """
    prepare()
    try:
        if strange := takes_no_text(zone, model_type):  # the class is imported here, once for all of its tasks
            return Found("not of texts", strange)
    except Exception as error:  # noqa: BLE001 - whatever a module of others raises
        return Found("not built", f"{type(error).__name__}: {' '.join(str(error).split())}"[:260])
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:  # here, since the process may be killed
        return _ask(zone, model_type, Path(folder), limit_s)


def _ask(zone: Zone, model_type: str, folder: Path, limit_s: float) -> Found:
    answers, sends = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_run, args=(zone, model_type, folder, sends))
    child.start()
    sends.close()
    try:
        told = (
            answers.recv() if answers.poll(limit_s) else json.dumps(Found("died", f"hangs for {limit_s:.0f} s").row())
        )
    except EOFError:
        child.join(5)
        told = json.dumps(Found("died", f"its process ended with {child.exitcode}").row())
    child.kill()
    child.join()
    return Found(**json.loads(told))


@functools.cache
def prepare() -> None:
    """What each child would do again: imports, and transformers' tables of names, which a first model makes."""
    import pandas  # noqa: F401
    import torch
    import transformers
    import transformers.models.t5.modeling_t5

    import udfs.engine.forward
    import udfs.generation.loading  # noqa: F401

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        build(Path(folder), "llama", "AutoModelForCausalLM")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        model.generate(torch.tensor([[3, 4]]), max_new_tokens=1)


def _run(zone: Zone, model_type: str, folder: Path, sends: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    faulthandler.enable()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as the process lives
    if not os.environ.get("ZOO_STDERR"):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sends.send(json.dumps(compare(zone, model_type, folder).row()))
