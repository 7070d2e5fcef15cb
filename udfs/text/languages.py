"""Languages as the families of translators call them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from udfs.errors import SpecError
from udfs.model.files import ModelFiles
from udfs.text.codec import TransformersCodec

# The codes of ISO 639-1 that a model asked in English is likely to know by name.
_NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German",
    "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "nl": "Dutch", "no": "Norwegian",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian",
    "sr": "Serbian", "sv": "Swedish", "ta": "Tamil", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu",
    "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
_SHOWN = 12
_OF_MARIAN = re.compile(r"^>>(.+)<<$")
_OF_M2M = re.compile(r"^__([a-z]{2,3})__$")
_OF_NLLB_AND_MBART = re.compile(r"^([a-z]{2,3}_[A-Z][A-Za-z]{1,3})$")


def name_language(code: str) -> str:
    """The English name of a code such as `de`; a name stays as it is.

    Raises:
        SpecError: There is no such code.
    """
    known = _NAMES.get(code.lower())
    if known is None and len(code) <= 3:
        raise SpecError(f"there is no language {code!r}; {_list(_NAMES)}, or give its English name")
    return known or code


def marian_prefix(codec: TransformersCodec, target: str | None, files: ModelFiles) -> str:
    """What a Marian model wants before a text: its target, if it has several.

    Raises:
        SpecError: It has several, and not this one.
    """
    known = _codes(codec, _OF_MARIAN)
    if not known:
        return ""
    if target not in known:
        raise SpecError(f"{_missing('target_lang', target)} for model {files.name!r}; {_list(known)}")
    return f">>{target}<< "


def language_token(codec: TransformersCodec, code: str | None, files: ModelFiles, setting: str) -> int:
    """The token of a language of M2M, NLLB or mBART.

    Raises:
        SpecError: The model has no such language.
    """
    known = _codes(codec, _OF_M2M) or _codes(codec, _OF_NLLB_AND_MBART)
    if code not in known:
        raise SpecError(f"{_missing(setting, code)} for model {files.name!r}; {_list(known)}")
    return known[code]


def _codes(codec: TransformersCodec, form: re.Pattern[str]) -> dict[str, int]:
    found = ((form.match(token), number) for token, number in codec.vocabulary.items())
    return {match.group(1): number for match, number in found if match}


def _missing(setting: str, code: str | None) -> str:
    return f"{setting} is missing" if code is None else f"{setting} is {code!r}, which is no language"


def _list(known: Iterable[str]) -> str:
    codes = sorted(known)
    more = f" and {len(codes) - _SHOWN} more" if len(codes) > _SHOWN else ""
    return f"there are {', '.join(codes[:_SHOWN])}{more}"
