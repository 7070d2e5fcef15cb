"""What a model is called, as every node finds that very one: the ways to name a place that is no plain name."""

from __future__ import annotations

import os
import re
import shlex
from urllib.parse import unquote, urlsplit

from udfs.errors import ModelError, UnsafeModelError
from udfs.model.registry import IN_REGISTRY, find_registered, is_key

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_URI = re.compile(
    r"hf://(?:models/)?(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/pr/\d+|refs/convert/[\w.-]+|[^/]+))?(?:/(?P<path>.*))?"
)
_NO_MODELS = ("hf://datasets/", "hf://spaces/", "hf://kernels/", "hf://buckets/")


def resolve_name(name: str, revision: str | None) -> tuple[str, str | None]:
    """A model's name without schemes and aliases, and its revision.

    `dbfs:/Volumes/…` and `file:/…` are directories, `hf://ORG/NAME@REVISION` is a hub id, `models:/NAME@ALIAS` is
    `models:/NAME/VERSION`, or the hub id that this version refers to. Other names are left as they are.

    Raises:
        ModelError: It is none of these in full, two revisions are told, or the registry does not have it.
        UnsafeModelError: A registered model refers to a directory of the machine that it was logged on.
    """
    if name.startswith(IN_REGISTRY):
        return _resolve_registered(name, revision)
    if name.startswith("hf:"):
        return _resolve_hub(name, revision)
    if name.startswith(("dbfs:", "file:")):
        return _as_directory(name), revision
    return name, revision


def _resolve_registered(name: str, revision: str | None) -> tuple[str, str | None]:
    if is_key(revision):  # it is resolved
        return name, revision
    if revision is not None:
        raise ModelError(f"model {name!r} is of a registry, and revision is for hub ids; take models:/NAME/VERSION")
    place, key = find_registered(name)
    if not place.startswith(IN_REGISTRY) and not HUB_ID.fullmatch(place):
        raise UnsafeModelError(
            f"model {name!r} refers to {place!r}, on the machine that it was logged on; log it with its weights "
            "(`save_pretrained=True`)"
        )
    return place, key


def _resolve_hub(name: str, revision: str | None) -> tuple[str, str | None]:
    if name.startswith(_NO_MODELS) or (found := _HUB_URI.fullmatch(name)) is None:
        raise ModelError(f"model {name!r} is no model of the hub; write hf://ORG/NAME or hf://ORG/NAME@REVISION")
    if path := (found["path"] or "").strip("/"):
        raise ModelError(
            f"model {name!r} names {path!r} in a repository, and gristmill reads those whose files are at their root; "
            f"fetch it with `hf download {found['id']} --include {shlex.quote(f'{path}/*')} --local-dir DIR` and name "
            "that directory"
        )
    named = found["revision"] and unquote(found["revision"])
    if revision and named and revision != named:
        raise ModelError(f"model {name!r} names a revision, and `revision` is {revision!r}; tell one of them")
    return found["id"], named or revision


def _as_directory(name: str) -> str:
    """The directory that a URI names: Databricks has its volumes at `/Volumes`, and its older root at `/dbfs`."""
    path = os.path.normpath("/" + unquote(urlsplit(name).path).lstrip("/"))
    in_root = name.startswith("dbfs:") and not path.startswith(("/Volumes/", "/dbfs/"))
    return f"/dbfs{path}" if in_root else path
