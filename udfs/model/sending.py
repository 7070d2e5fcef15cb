"""Copies of a registry's models for executors that are other machines than the driver: these never ask the registry."""

from __future__ import annotations

import atexit
import functools
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udfs.model.files import open_model_of, walk_files
from udfs.model.registry import is_key

if TYPE_CHECKING:
    from udfs.spec import ScoreSpec

_SEEN_BY_ALL = ("/Volumes/", "/dbfs/")
_sent: set[tuple[str, str]] = set()


def send_models(session: Any, spec: ScoreSpec) -> None:
    """Have Spark bring a registered model, and an adapter's base, to each executor once; others are theirs to find.

    Args:
        session: The Spark session; None sends nothing.
        spec: What is asked, pinned.
    """
    if session is None or (owner := _find_owner(session)) is None:
        return
    files = open_model_of(spec)
    for each in filter(None, (files, files.base)):
        sent = (owner, str(each.commit))
        if is_key(each.commit) and not str(each.root).startswith(_SEEN_BY_ALL) and sent not in _sent:
            session.addArtifacts(f"{_pack(each.root)}#{each.commit}", archive=True)
            _sent.add(sent)


def _find_owner(session: Any) -> str | None:
    """Whose what is sent will be: a Connect session's, or an application's; None where executors are this machine."""
    if type(session).__module__.startswith("pyspark.sql.connect"):
        return str(session.session_id)
    master = str(session.conf.get("spark.master", ""))
    return None if master == "local" or master.startswith("local[") else str(session.conf.get("spark.app.id", ""))


@functools.lru_cache(maxsize=8)
def _pack(root: Path) -> Path:
    """The model as one file, which Spark copies from whenever an executor starts."""
    folder = tempfile.mkdtemp(prefix="gristmill-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = Path(folder) / f"{root.name}.tar"
    with tarfile.open(target, "w") as archive:
        for path in walk_files(root):
            archive.add(path, path.relative_to(root))
    return target
