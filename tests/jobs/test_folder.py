from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pyarrow.fs as pafs
import pytest

from jobs.errors import OutputError
from jobs.folder import Folder, check_scheme


@pytest.mark.parametrize("scheme", ["", "file:", "file://"])
def test_a_file_is_written_whole_and_read_back(tmp_path: Path, scheme: str) -> None:
    folder = Folder(f"{scheme}{tmp_path}/06:00")  # a colon alone makes no scheme
    folder.write_json("a/b.json", {"x": "é"})
    assert folder.read_json("a/b.json") == {"x": "é"}
    assert folder.entries("a") == ["b.json"]
    assert (tmp_path / "06:00" / "a" / "b.json").is_file()
    assert folder.read_all_json(["a/c.json", "a/b.json"]) == [None, {"x": "é"}]


def test_delete_takes_files_and_directories_and_minds_nothing_that_is_gone(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_json("d/a.json", 1)
    folder.write_json("b.json", 1)
    for name in ("d", "b.json", "never"):
        folder.delete(name)
    assert folder.entries() == []


def test_a_scheme_that_nothing_can_reach_is_told() -> None:
    with pytest.raises(OutputError, match="cannot reach"):
        Folder("nosuch://bucket/out")


class _Cluster:
    """The part of a session that tells its default filesystem."""

    def __init__(self, default: str) -> None:
        self._jsc = self
        self._default = default

    def hadoopConfiguration(self) -> dict[str, str]:
        return {"fs.defaultFS": self._default}


def test_a_path_without_a_scheme_is_refused_where_spark_means_hdfs() -> None:
    with pytest.raises(OutputError, match="hdfs://nn:8020/user/out"):
        check_scheme(_Cluster("hdfs://nn:8020"), "/user/out")  # type: ignore[arg-type]
    check_scheme(_Cluster("hdfs://nn:8020"), "s3://bucket/out")  # type: ignore[arg-type]
    check_scheme(_Cluster("file:///"), "/user/out")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "is_store"),
    [
        ("/mnt/bucket/out", True),  # s3fs, gcsfuse, rclone, blobfuse, Mountpoint
        ("/mnt/bucket", True),
        ("/mnt/bucket2/out", False),
        ("/mnt/usb/out", False),  # NTFS by FUSE is a disk
        ("/Volumes/catalog/schema/volume/out", True),
        ("/dbfs/tmp/out", True),
        ("/data/Volumes/out", False),
    ],
)
def test_an_object_store_that_is_mounted_is_no_disk(path: str, is_store: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"/": "ext4", "/mnt": "nfs4", "/mnt/bucket": "fuse.s3fs", "/mnt/usb": "fuseblk"}
    mounts = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in kinds.items()]
    monkeypatch.setattr("jobs.folder.psutil.disk_partitions", lambda all: mounts)
    folder = Folder(path)
    assert (folder.is_local, folder.is_disk, folder.renames) == (True, not is_store, not is_store)
    assert Folder(f"file:{path}").is_disk != is_store


@pytest.mark.parametrize(
    ("path", "place"), [("dbfs:/Volumes/c/s/v/out", "/Volumes/c/s/v/out"), ("dbfs:/tmp/out", "/dbfs/tmp/out")]
)
def test_a_path_of_databricks_is_where_the_driver_has_it_mounted(path: str, place: str) -> None:
    assert str(Folder(path).local_path()) == place
    assert not Folder(path).is_disk


def test_directories_that_were_made_for_rows_are_kept_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, kept = Folder(str(tmp_path / "out")), list[Path]()
    folder.write_json("_gristmill/writing/run/increment=000000/rows.json", 1)
    monkeypatch.setattr("jobs.folder._sync", lambda path: kept.append(path))
    folder.sync("_gristmill/writing/run/increment=000000")
    above = ["_gristmill/writing/run", "_gristmill/writing", "_gristmill", "."]
    assert kept[-4:] == [tmp_path / "out" / name for name in above]


def test_a_mount_that_renames_nothing_keeps_small_files_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    monkeypatch.setattr(Folder, "is_disk", property(lambda _: False))

    class Mount(pafs.LocalFileSystem):  # type: ignore[misc]
        def move(self, *_: str) -> None:
            raise OSError(errno.ENOSYS, "Function not implemented")

    folder._fs = Mount()
    for value in (1, 2):
        folder.write_json("a/b.json", value)
        assert folder.read_json("a/b.json") == value
    assert folder.entries("a") == ["b.json"]
