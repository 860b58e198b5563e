"""Files, directories and logs that a kill cannot leave half written."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from crem_jax.errors import CremError
from crem_jax.files import (
    JsonLinesLog,
    atomic_directory,
    atomic_files,
    atomic_write,
    keep_lines,
    read_lines,
    write_bytes,
    write_json,
    write_lines,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def synced(monkeypatch) -> list[str]:
    """Names of what has been waited for, in order, and of what took its place."""
    names, fsync, replace = [], os.fsync, os.replace

    def waiting(descriptor: int) -> None:
        names.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def replacing(old, new) -> None:
        names.append(f"-> {Path(new).name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", waiting)
    monkeypatch.setattr(os, "replace", replacing)
    return names


def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path):
    path = tmp_path / "folder" / "a.json"
    write_json(path, {"text": "é", "name": "\udc80"})
    before = path.read_bytes()
    assert json.loads(before) == {"text": "é", "name": "\udc80"} and "é".encode() in before
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    with atomic_write(path) as partial:
        partial.write_text("whole")
        assert path.read_bytes() == before and partial.match(".*.partial")
    assert path.read_text() == "whole"
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "a"
    with atomic_write(path) as outer:
        outer.write_text("outer")
        with atomic_write(path) as inner:
            inner.write_text("inner, which is longer")
        assert path.read_text() == "inner, which is longer"
    assert path.read_text() == "outer"


def test_a_synced_file_is_on_the_disk_before_its_name(tmp_path, synced):
    write_bytes(tmp_path / "a", b"", fsync=True)
    partial, name, folder = synced
    assert partial.startswith(".a.") and name == "-> a" and folder == tmp_path.name
    del synced[:]
    write_bytes(tmp_path / "a", b"")
    assert synced == ["-> a"]


def test_a_full_directory_is_refused_unless_it_is_to_be_replaced(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").touch()
    with pytest.raises(CremError, match="out: already has files in it"), atomic_directory(target):
        pass
    with atomic_directory(target, overwrite=True) as partial:
        (partial / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]


def test_a_replacement_cut_short_is_put_back(tmp_path):
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "mine").touch()
    with pytest.raises(CremError), atomic_directory(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "mine").exists()


def test_files_go_beside_those_that_are_there_when_all_are_written(tmp_path):
    target = tmp_path / "out"
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "torn").touch()  # by a kill
    for names in (["a", "b"], ["b", "c"]):
        with atomic_files(target) as partial:
            for name in names:
                (partial / name).write_text("".join(names))
    with pytest.raises(KeyboardInterrupt), atomic_files(target) as partial:
        (partial / "a").write_text("half")
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        "a": "ab",
        "b": "bc",
        "c": "bc",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_else_replaces_files_by_hand():
    """Of a whole directory that appears at the end of long work, prepare.py alone takes care."""
    found = {
        str(path.relative_to(ROOT / "crem_jax"))
        for path in (ROOT / "crem_jax").rglob("*.py")
        if any(word in path.read_text() for word in ("os.replace(", "os.rename(", "os.fsync("))
    }
    assert found == {
        "files.py",
        "convert/peft.py",  # within a directory that is not published yet
        "convert/safetensors_io.py",  # syncs gigabytes as it writes them
        "data/tools/prepare.py",
    }


# logs of JSON lines


@pytest.mark.parametrize(
    "torn", ["", "{", '{"n": 3, "te', '{"n": 3}\udce2', '{"n": "' + "x" * 99_999]
)
def test_a_torn_last_line_is_cut_off_when_a_log_is_opened(tmp_path, torn):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n' + torn.encode(errors="surrogateescape"))
    assert [line["n"] for line in read_lines(path)] == [1, 2]
    with JsonLinesLog(path) as log:
        log.append([{"n": 3}, {"n": 4}])
    assert path.read_text() == '{"n": 1}\n{"n": 2}\n{"n": 3}\n{"n": 4}\n'


def test_a_log_of_nothing_but_a_torn_line_becomes_empty(tmp_path):
    path = tmp_path / "folder" / "log.jsonl"
    assert list(read_lines(path)) == []
    JsonLinesLog(path).close()
    path.write_text('{"n"')
    JsonLinesLog(path).close()
    assert path.read_text() == ""


def test_a_last_line_that_lacks_its_newline_alone_is_kept(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}')
    assert [line["n"] for line in read_lines(path)] == [1, 2]
    with JsonLinesLog(path) as log:
        log.append([{"n": 3}])
    assert [line["n"] for line in read_lines(path)] == [1, 2, 3]


def test_a_file_that_is_no_log_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "photo.jpg"
    for content in (b"\xff\xd8 no newline", b"a line\nand another"):
        path.write_bytes(content)
        with pytest.raises(CremError, match=r"photo\.jpg ends in something that is no JSON line"):
            JsonLinesLog(path)
        assert path.read_bytes() == content


def test_a_damaged_line_is_named_or_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"n": 1}\n{"n":\n{"n": 3}\n')
    with pytest.raises(CremError, match=r"log\.jsonl line 2 is no JSON"):
        list(read_lines(path))
    assert [line["n"] for line in read_lines(path, skip_damaged=True)] == [1, 3]
    keep_lines(path, lambda line: line["n"] > 1)
    assert path.read_text() == '{"n": 3}\n'


def test_half_a_surrogate_pair_is_read_back_as_it_was(tmp_path):
    """As in the name of a file that is not UTF-8."""
    lines = [{"name": "caf\udce9.jpg", "text": "café"}]
    write_lines(tmp_path / "log.jsonl", lines)
    with JsonLinesLog(tmp_path / "log.jsonl") as log:
        log.append(lines)
    assert list(read_lines(tmp_path / "log.jsonl")) == lines * 2


def test_synced_lines_are_on_the_disk_at_once(tmp_path, synced):
    with JsonLinesLog(tmp_path / "log.jsonl", fsync=True) as log:
        log.append([{"n": 1}, {"n": 2}])
        assert synced == ["log.jsonl"] and len(list(read_lines(log.path))) == 2


def _opens(path: Path) -> bool:
    try:
        JsonLinesLog(path, exclusive=True).close()
    except CremError as error:
        assert "is being written by another process" in str(error)
        return False
    return True


def test_an_exclusive_log_is_one_process_s_while_it_is_open(tmp_path):
    path = tmp_path / "log.jsonl"
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        with JsonLinesLog(path, exclusive=True):
            assert not pool.apply(_opens, (path,))
        assert pool.apply(_opens, (path,))
