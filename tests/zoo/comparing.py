"""One architecture: transformers' own answers, one text at a time, and gristmill's."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.zoo.building import build
from udfs.errors import GristmillError, first_line
from udfs.local import LocalEngine
from udfs.model.files import open_model
from udfs.model.inputs import inputs_of
from udfs.tasks.registry import make_spec, make_task
from udfs.worker.scoring import score_with

# Short and long, of lengths that neighbour and that do not, with duplicates.
TEXTS = ["tea", "a red kettle, and a blue one that is not for tea", "spade", "tea", "the garden is fine"]
TEXTS += ["a dog", "book", "the soil of the garden is not very good, and a lamp is about all there is", "a red kettle"]
NEW = 4
CLOSE = 2e-4  # of the largest number of an answer


@dataclass(frozen=True)
class Zone:
    """A task, and the classes that transformers maps to it.

    Args:
        task: gristmill's name.
        auto_class: transformers' class.
        mapping: transformers' list of architectures for it.
    """

    task: str
    auto_class: str
    mapping: str


ZONES = (
    Zone(
        "text-classification", "AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"
    ),
    Zone("token-classification", "AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES"),
    Zone("feature-extraction", "AutoModel", "MODEL_MAPPING_NAMES"),
    Zone("text-generation", "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    Zone("summarization", "AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
)


@dataclass(frozen=True)
class Found:
    """What became of an architecture.

    Args:
        result: `equal`; `refused` before Spark starts; or what must not be: `late`, `differs`, `died`. `not of texts`
            where transformers itself does not run it on texts, `not built` where no tiny model was made.
        how: `packed`, `padded`, … of what is equal; else the reason.
    """

    result: str
    how: str

    def row(self) -> dict[str, str]:
        return asdict(self)


def compare(zone: Zone, model_type: str, folder: Path) -> Found:
    """Build, ask transformers, ask gristmill."""
    try:
        build(folder, model_type, zone.auto_class)
    except Exception as error:  # noqa: BLE001 - whatever a class of others raises
        return Found("not built", f"{type(error).__name__}: {' '.join(str(error).split())}"[:260])
    decodes = zone.task == "summarization" and not open_model(str(folder)).config.get("is_encoder_decoder")
    name = "text-generation" if decodes else zone.task  # a decoder summarizes in a chat alone
    spec = make_spec(name, str(folder), precision="float32", max_batch_tokens=200, **_OPTIONS.get(zone.task, {}))
    try:
        task = make_task(spec, open_model(spec.model))
        tokenized = [task.tokenize([text]).items.ids for text in TEXTS]
    except GristmillError as error:
        return Found("refused", _told(error))
    try:
        wanted = _ask_transformers(zone, folder, tokenized, task)
    except Exception as error:  # noqa: BLE001 - as above
        return Found("not of texts", _told(error))
    try:
        with LocalEngine(spec) as engine:
            rows = [row for part in score_with(engine, [pa.array(TEXTS)], spec) for row in part.to_pylist()]
            how = _way(engine.model)
    except GristmillError as error:
        return Found("late", _told(error))
    except Exception as error:  # noqa: BLE001 - as above
        return Found("died", _told(error))
    return _judge(zone, rows, wanted, how)


def _way(model: Any) -> str:
    """How items go through a model: packed, padded, those of one length together, or alone."""
    grouping = {"length": "one length", "single": "alone"}
    return grouping.get(getattr(model, "_grouping", ""), model.name.rsplit("/", 1)[-1])


def takes_no_text(zone: Zone, model_type: str) -> str:
    """What an architecture takes in the place of texts; empty where it takes token ids."""
    import transformers

    named = getattr(transformers.models.auto.modeling_auto, zone.mapping)[model_type]
    name = named if isinstance(named, str) else named[0]
    taken = inputs_of(model_type, name) or list(inspect.signature(getattr(transformers, name).forward).parameters)[1:]
    return "" if "input_ids" in taken else f"takes {', '.join(taken[:3])}"


_OPTIONS: dict[str, dict[str, Any]] = {
    "token-classification": {"aggregation_strategy": "none"},
    "text-generation": {"max_new_tokens": NEW},
    "summarization": {"max_new_tokens": NEW},
}


# Of these the encoder alone embeds.
_BY_ENCODER = {
    *("blenderbot", "blenderbot-small", "longt5", "m2m_100", "marian", "pegasus", "pegasus_x", "prophetnet"),
    *("switch_transformers", "t5gemma", "t5gemma2"),
}


def _ask_transformers(zone: Zone, folder: Path, tokenized: list[np.ndarray], task: Any) -> list[Any]:
    """Answers of transformers to each text alone."""
    import torch
    import transformers

    name = zone.auto_class
    config = transformers.AutoConfig.from_pretrained(folder)
    encoders = transformers.models.auto.modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
    alone = config.model_type in encoders and config.model_type not in _BY_ENCODER
    if name == "AutoModel" and config.is_encoder_decoder and alone:
        name = "AutoModelForTextEncoding"
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
    if zone.task == "feature-extraction" and config.model_type in _BY_ENCODER:
        model = model.get_encoder()
    answers: dict[bytes, Any] = {}
    with torch.inference_mode():
        for ids in {ids.tobytes(): ids for ids in tokenized}.values():
            asked = torch.from_numpy(ids[None].astype(np.int64))
            inputs = {"input_ids": asked, "attention_mask": torch.ones_like(asked)}
            answers[ids.tobytes()] = _ANSWERS[zone.task](model, inputs, task)
    found = [answers[ids.tobytes()] for ids in tokenized]
    if zone.task in ("text-classification", "feature-extraction"):
        if not all(np.isfinite(one).all() for one in found):
            raise ValueError("its answers are not finite")
        if np.allclose(found[0], found[1], rtol=1e-4):
            raise ValueError("it answers every text alike")
    return found


def _classify(model: Any, inputs: dict[str, Any], task: Any) -> np.ndarray:
    logits: np.ndarray = model(**inputs).logits[0].numpy()
    if logits.shape != (len(task.labels),):
        raise ValueError(f"its logits are of shape {logits.shape}")
    return logits  # scores are the same, of a regression


def _tag(model: Any, inputs: dict[str, Any], task: Any) -> np.ndarray:
    logits = model(**inputs).logits[0]
    if logits.shape != (inputs["input_ids"].shape[1], len(task.labels)):
        raise ValueError(f"its logits are of shape {tuple(logits.shape)}")
    return logits.softmax(-1).numpy()


def _embed(model: Any, inputs: dict[str, Any], task: Any) -> np.ndarray:
    states = model(**inputs).last_hidden_state
    if states.ndim != 3 or states.shape[:2] != inputs["input_ids"].shape:
        raise ValueError(f"its states are of shape {tuple(states.shape)}, not one a token")
    return states[0].float().mean(0).numpy()


def _write(model: Any, inputs: dict[str, Any], task: Any) -> str:
    written = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=NEW)[0].tolist()
    begun = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    from udfs.generation.loading import find_ends

    ends, told = find_ends(model), written[begun:]
    cut = next((i for i, token in enumerate(told) if token in ends), len(told))
    return str(task.codec.decode([np.array(told[:cut], dtype=np.int64)])[0])


_ANSWERS = {
    "text-classification": _classify,
    "token-classification": _tag,
    "feature-extraction": _embed,
    "text-generation": _write,
    "summarization": _write,
}


def _judge(zone: Zone, rows: list[dict[str, Any]], wanted: list[Any], how: str) -> Found:
    failed = [row["error"] for row in rows if row["error"]]
    if failed:
        return Found("died", f"{how}: {failed[0]['code']}: {' '.join(failed[0]['message'].split())[:150]}")
    worst = max(_distance(zone.task, row, right) for row, right in zip(rows, wanted, strict=True))
    return Found("equal", how) if worst < CLOSE else Found("differs", f"{how}: by {worst:.2g}")


def _distance(task: str, row: dict[str, Any], right: Any) -> float:
    if task in ("text-generation", "summarization"):
        return float(row["text"].strip() != right.strip())
    if task == "feature-extraction":
        return float(np.abs(np.array(row["embedding"]) - right).max() / np.abs(right).max())
    if task == "text-classification":
        return float(np.abs(np.array(list(dict(row["scores"]).values())) - right).max() / np.abs(right).max())
    got = [entity["score"] for entity in row["entities"]]
    best = right.max(-1)
    return min(
        (
            float(np.abs(np.array(got) - best[a : len(best) - b]).max())
            for a, b in ((0, 0), (1, 1), (0, 1), (1, 0))
            if len(best) - a - b == len(got)
        ),
        default=1.0,
    )


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(first_line(error).split())}"[:260]
