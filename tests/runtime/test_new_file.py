"""Files that appear when they are complete: what is replaced, with which mode, and what killed writers leave."""

from __future__ import annotations

import os
import signal
import stat
import threading
from pathlib import Path

import pytest

from topkast.runtime.new_file import new_file, new_folder


def write(path: Path, content: bytes) -> None:
    with new_file(path) as file:
        file.write(content)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_link_is_followed_and_the_mode_is_kept(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640
    before = os.umask(0o027)
    try:
        write(tmp_path / "fresh", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o640


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to pipe").symlink_to("pipe")
    for name in ("pipe", "to pipe", "."):
        with pytest.raises(OSError, match="only a regular file is replaced"):
            write(tmp_path / name, b"")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and names(tmp_path) == ["pipe", "to pipe"]
    write(tmp_path / ("n" * 250), b"")  # the temporary name does not grow with the name


def test_what_a_killed_writer_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with new_folder(tmp_path / "b"), new_file(tmp_path / "a"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(names(tmp_path)) == 2
    with new_file(tmp_path / "mine") as file:
        file.write(b"mine")
        write(tmp_path / "other", b"other")
    assert names(tmp_path) == ["mine", "other"] and (tmp_path / "mine").read_bytes() == b"mine"


def test_of_two_writers_the_last_wins_and_none_fails(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def many(content: bytes) -> None:
        try:
            for _ in range(40):
                write(tmp_path / "file", content * 100)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=many, args=(content,)) for content in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() in (b"a" * 100, b"b" * 100, b"c" * 100)
