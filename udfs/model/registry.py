"""Models of an MLflow registry: which version a name means, and a copy of it on this machine.

The driver asks the registry, once a run, and keeps the copy beside the hub's cache (`HF_HOME`). Executors never ask:
they have the copy there too, or what the driver has sent them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock

from udfs.errors import ModelError, first_line
from udfs.model.flavors import Parts, read_parts

IN_REGISTRY = "models:"
_NAME = re.compile(r"models:/(?P<name>[^/@:]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@:]+))")
_KEY = re.compile(r"mlflow-[0-9a-f]{32}")
_USER = re.compile(r"(?<=://)[^/@\s]+@")
_SECRETS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "DATABRICKS_TOKEN", "DATABRICKS_CLIENT_SECRET")
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE")  # the last of an alias
_SHOWN = 8  # versions and aliases that a message names


@dataclass(frozen=True)
class _Version:
    """A version of a registered model.

    Args:
        name: The model's.
        version: Its number.
        key: Tells it from others of that name and number, in whichever registry; none is made twice.
    """

    name: str
    version: str
    key: str

    @property
    def uri(self) -> str:
        return f"{IN_REGISTRY}/{self.name}/{self.version}"


def is_key(revision: str | None) -> bool:
    """A revision is what `find_registered` has given a version, and not a commit."""
    return revision is not None and _KEY.fullmatch(revision) is not None


def find_registered(name: str) -> tuple[str, str]:
    """Ask the registry what a name means, and have a copy of that version here.

    Args:
        name: `models:/NAME/VERSION` or `models:/NAME@ALIAS`.

    Returns:
        `models:/NAME/VERSION` and its key, by which every node finds the copy; or, of a version that was logged
        without its weights, the hub id and the commit that it refers to.

    Raises:
        ModelError: There is no such version, no MLflow here, no registry or no answer of it, or the version is of no
            flavor that gristmill reads.
    """
    if (asked := _NAME.fullmatch(name)) is None:
        raise ModelError(f"model {name!r} names no version; write models:/NAME/VERSION or models:/NAME@ALIAS")
    if importlib.util.find_spec("mlflow") is None:
        raise ModelError(f"model {name!r} is of a registry, which needs MLflow: `pip install 'gristmill[mlflow]'`")
    with _quiet():
        version = _look_up(name, **asked.groupdict())
        if asked["alias"]:
            print(f"gristmill: model {name!r} is version {version.version}", file=sys.stderr)
        parts = read_parts(name, _read_mlmodel(name, version))
        for warning in parts.warnings:
            print(f"gristmill: model {name!r} {warning}", file=sys.stderr)
        if parts.hub_id is not None:
            return parts.hub_id, str(parts.commit)
        folder = _home() / _below(version.uri) / version.key
        if not folder.is_dir():
            _make_copy(name, version, parts, folder)
    return version.uri, version.key


def find_copy(name: str, key: str) -> Path:
    """A resolved model's directory on this machine, which is called by its key.

    Raises:
        ModelError: It is not here.
    """
    places = (_home() / _below(name), *map(Path, sys.path))  # Spark puts what it was sent on a worker's path
    found = next((place / key for place in places if (place / key).is_dir()), None)
    if found is None:
        raise ModelError(
            f"model {name!r} is not on this machine ({platform.node()}): neither in {_home()}, nor sent by the driver; "
            "set HF_HOME to a directory that all nodes see"
        )
    return found.resolve()


def _home() -> Path:
    """Where copies are kept: beside the models of the hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME, "gristmill")


def _below(uri: str) -> str:
    name, version = uri.removeprefix(f"{IN_REGISTRY}/").split("/")
    return f"models--{quote(name, safe='')}/{version}"


def _look_up(told: str, *, name: str, version: str | None, alias: str | None) -> _Version:
    """What the registry has of that name."""
    from mlflow.exceptions import MlflowException

    _check_registry(told)
    try:
        client = _open_client()
        found = client.get_model_version(name, version) if version else client.get_model_version_by_alias(name, alias)
    except (MlflowException, OSError, ValueError, ImportError) as error:
        raise ModelError(_why_not(told, name, version, error)) from None  # MLflow's own may tell a password
    if found.status != "READY":
        raise ModelError(f"model {told!r} is not ready in the registry: it is {found.status}")
    made = [name, str(found.version), found.creation_timestamp, found.run_id, getattr(found, "model_id", None)]
    digest = hashlib.sha256(json.dumps(made).encode()).hexdigest()[:32]
    return _Version(name, str(found.version), f"mlflow-{digest}")


def _check_registry(told: str) -> None:
    """Refuse what MLflow takes where nobody has named a registry: an empty one in the working directory."""
    import mlflow

    registry = mlflow.get_registry_uri()
    named = mlflow.is_tracking_uri_set() or registry != mlflow.get_tracking_uri() or registry.startswith("databricks")
    if not named:
        raise ModelError(
            f"model {told!r} is of a registry, and none is named: set MLFLOW_TRACKING_URI (or MLFLOW_REGISTRY_URI) to "
            "its address, as https://mlflow.example.com, sqlite:////data/mlflow.db, databricks or databricks-uc"
        )


def _open_client() -> Any:
    """MLflow's client, which makes an empty store of runs in the working directory where only the registry is named."""
    import mlflow

    registry = mlflow.get_registry_uri()
    alone = not mlflow.is_tracking_uri_set() and not registry.startswith("databricks")
    return mlflow.MlflowClient(tracking_uri=registry if alone else None)


def _why_not(told: str, name: str, version: str | None, error: Exception) -> str:
    """What to tell where the registry gave no version."""
    import mlflow

    where = f"the registry {_without_secrets(mlflow.get_registry_uri())}"
    if getattr(error, "error_code", "") not in _NOT_THERE:
        return f"model {told!r} cannot be looked up in {where}: {_without_secrets(first_line(error))}"
    try:
        client = _open_client()
        model = client.get_registered_model(name)
        there = sorted((int(each.version) for each in client.search_model_versions(f"name='{name}'")), reverse=True)
    except Exception as second:  # noqa: BLE001 - whatever a store raises
        if getattr(second, "error_code", "") not in _NOT_THERE[:2]:
            return f"model {told!r} cannot be looked up in {where}: {_without_secrets(first_line(second))}"
        return f"model {told!r} is not there: {where} has no model {name!r}, or none that this user may see"
    kind, found = ("versions", there) if version else ("aliases", sorted(model.aliases))
    shown = f"{', '.join(map(str, found[:_SHOWN]))}{', …' if len(found) > _SHOWN else ''}" or "none"
    return f"model {told!r} is not there: {where} has {name!r}, and of its {kind} {shown}"


def _make_copy(name: str, version: _Version, parts: Parts, folder: Path) -> None:
    """Bring a version's files here; nothing is at `folder` until all of them are."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"), tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as staged:
            if folder.is_dir():  # another process was faster
                return
            made = _fetch(name, version, parts.model, staged)
            if parts.tokenizer is not None:
                shutil.copytree(_fetch(name, version, parts.tokenizer, staged), made, dirs_exist_ok=True)
            parts.complete(made)
            made.rename(folder)
    except OSError as error:
        raise ModelError(f"model {name!r} cannot be kept in {folder.parent}: {error}; HF_HOME names another") from error


def _read_mlmodel(name: str, version: _Version) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return _fetch(name, version, "MLmodel", folder).read_text(encoding="utf-8", errors="replace")


def _fetch(name: str, version: _Version, part: str, target: str) -> Path:
    """A file or directory of a version's artifacts, below `target`."""
    import mlflow

    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{version.uri}/{part}", dst_path=target))
    except Exception as error:  # noqa: BLE001 - of whichever store its artifacts lie in, and its client
        told = _without_secrets(first_line(error))
        raise ModelError(f"model {name!r}: {part} of version {version.version} cannot be fetched: {told}") from None


def _without_secrets(text: str) -> str:
    """A message of MLflow's without what the registry is asked with."""
    for secret in filter(None, map(os.environ.get, _SECRETS)):
        text = text.replace(secret, "***")
    return _USER.sub("***@", text)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """MLflow and its database tell nothing meanwhile but what is wrong; a bar of the download is for terminals."""
    if not sys.stderr.isatty():
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
