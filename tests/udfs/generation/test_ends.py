from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from tests.models import write_json
from tests.writers import ALPHABET, make_decoder, make_encoder_decoder
from udfs.generation.ends import find_ends
from udfs.model.files import open_model

END, TURN, OTHER = len(ALPHABET) + 1, len(ALPHABET) + 2, len(ALPHABET) + 3
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _decoder(path: Path, chat: str | None, *, special: bool = True, **own: Any) -> str:
    model = make_decoder(path, chat=chat)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokens = [AddedToken("<|im_end|>", special=special), AddedToken("<|im_end|>>", special=special)]
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(tokens)
    tokenizer.save(str(path / "tokenizer.json"))
    if own:
        write_json(path / "generation_config.json", own)
    return model


@pytest.mark.parametrize(
    ("chat", "own", "ends"),
    [
        (CHATML, {"eos_token_id": 7}, {7, TURN}),
        (CHATML, {"eos_token_id": [7, TURN]}, {7, TURN}),
        (CHATML, {}, {TURN}),
        (None, {"eos_token_id": 7}, {7}),
        (None, {}, {END}),  # the tokenizer's
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", {"eos_token_id": 7}, {7, END}),
        ("{% for m in messages %}{{ m.content }}\n### {% endfor %}", {"eos_token_id": 7}, {7}),
        ("{% for m in messages %}{{ m.content }}<|im_end|>>{% endfor %}", {"eos_token_id": 7}, {7, OTHER}),
        ("{{ raise_exception('never') }}", {"eos_token_id": 7}, {7}),
        ("{{ messages[0].content }}", {"eos_token_id": 7}, {7}),
    ],
)
def test_what_ends_a_turn_of_the_chat_ends_an_answer(
    chat: str | None, own: dict[str, Any], ends: set[int], tmp_path: Path
) -> None:
    for special in (True, False):
        model = _decoder(tmp_path / str(special), chat, special=special, **own)
        assert find_ends(open_model(model)) == ends


def test_an_encoder_decoder_has_no_turns(tmp_path: Path) -> None:
    model = make_encoder_decoder(tmp_path, eos_token_id=3)
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert find_ends(open_model(model)) == {3}
