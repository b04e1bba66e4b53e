"""Files to a tar stream and back, with `tar` as the other end, and sides that mean no good."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from vxnet.cluster.archive import check, pack, unpack
from vxnet.model.errors import CallerError, HostError, NotFoundError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with one of everything."""
    top = tmp_path / "source" / "www"
    (top / "inner").mkdir(parents=True, mode=0o750)
    (top / "index").write_text("hello\n")
    (top / "index").chmod(0o640)
    (top / "inner" / "größe\n").write_bytes(os.urandom(200_000))
    (top / "inner" / "empty").touch()
    (top / "link").symlink_to("index")
    (top / "broken").symlink_to("/no/where")
    os.mkfifo(top / "pipe", 0o600)
    os.utime(top / "inner", (1_000_000, 1_000_000))
    return top


def packed(path: Path | str, *, follow: bool = False) -> io.BytesIO:
    out = io.BytesIO()
    pack(str(path), out, follow=follow)
    return io.BytesIO(out.getvalue())


def tree(top: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted([top, *top.rglob("*")]):
        state = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(top))] = (stat.filemode(state.st_mode), content)
    return found


def test_there_and_back(source: Path, tmp_path: Path) -> None:
    unpack(packed(source), str(tmp_path / "copy"))
    assert tree(tmp_path / "copy") == tree(source)
    assert (tmp_path / "copy" / "inner").stat().st_mtime == 1_000_000
    unpack(packed(source), str(tmp_path / "copy"))
    assert tree(tmp_path / "copy" / "www") == tree(source), "into a directory that is there"


@pytest.mark.parametrize("path", ["/.", "/", ""])
def test_tar_reads_it(source: Path, tmp_path: Path, path: str) -> None:
    (tmp_path / "by-tar").mkdir()
    archive = packed(f"{source}{path}").getvalue()
    subprocess.run(["tar", "-x", "-C", str(tmp_path / "by-tar")], input=archive, check=True)
    top = tmp_path / "by-tar" if path == "/." else tmp_path / "by-tar" / "www"
    assert {name: found for name, found in tree(top).items() if name != "."} == {
        name: found for name, found in tree(source).items() if name != "."
    }


def test_what_tar_wrote_is_read(source: Path, tmp_path: Path) -> None:
    made = subprocess.run(["tar", "-c", "-C", str(source.parent), "www"], check=True, capture_output=True).stdout
    (tmp_path / "there").mkdir()
    unpack(io.BytesIO(made), str(tmp_path / "there"))
    assert tree(tmp_path / "there" / "www") == tree(source)


def test_dockers_rules_for_names(source: Path, tmp_path: Path) -> None:
    file, folder = source / "index", tmp_path / "folder"
    folder.mkdir()
    unpack(packed(file), str(tmp_path / "new"))
    assert (tmp_path / "new").read_text() == "hello\n"
    unpack(packed(file), f"{folder}/")
    assert (folder / "index").read_text() == "hello\n"
    (folder / "index").write_text("old")
    unpack(packed(file), str(folder / "index"))
    assert (folder / "index").read_text() == "hello\n"
    unpack(packed(f"{source}/."), str(folder))
    assert (folder / "inner").is_dir()
    unpack(packed(source / "link"), str(tmp_path / "l1"))
    unpack(packed(source / "link", follow=True), str(tmp_path / "l2"))
    assert (tmp_path / "l1").is_symlink() and (tmp_path / "l2").read_text() == "hello\n"


@pytest.mark.parametrize(
    ("source_name", "target", "words"),
    [
        ("index", "no/where", "no directory"),
        ("index", "no/", "no directory"),
        ("inner", "file", "over the file"),
        ("index", "clash", "over the directory"),
    ],
)
def test_wrong_targets(source: Path, tmp_path: Path, source_name: str, target: str, words: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "clash" / "index").mkdir(parents=True)
    with pytest.raises(CallerError, match=words):
        unpack(packed(source / source_name), str(tmp_path) + "/" + target)


@pytest.mark.parametrize("path", ["nothing", "index/", "index/.", "broken/"])
def test_wrong_sources(source: Path, path: str) -> None:
    with pytest.raises(CallerError):
        check(f"{source}/{path}")
    out = io.BytesIO()
    with pytest.raises(CallerError):
        pack(f"{source}/{path}", out)
    assert out.getvalue() == b"", "nothing is written before it is refused"


def evil(*members: tuple[str, bytes, str]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, link, 0o755
            tar.addfile(info)
    return io.BytesIO(out.getvalue())


@pytest.mark.parametrize(
    "members",
    [
        [("www", tarfile.DIRTYPE, ""), ("www/../../outside", tarfile.REGTYPE, "")],
        [("www", tarfile.DIRTYPE, ""), ("/outside", tarfile.REGTYPE, "")],
        [("www", tarfile.DIRTYPE, ""), ("www/d", tarfile.SYMTYPE, "../.."), ("www/d/outside", tarfile.REGTYPE, "")],
        [("www", tarfile.SYMTYPE, ".."), ("www/outside", tarfile.REGTYPE, "")],
        [("www", tarfile.DIRTYPE, ""), ("www/n", tarfile.CHRTYPE, "")],
        [("www", tarfile.DIRTYPE, ""), ("www/h", tarfile.LNKTYPE, "/etc/passwd")],
    ],
)
def test_an_archive_that_wants_out(tmp_path: Path, members: list[tuple[str, bytes, str]]) -> None:
    """A container may swap a directory for a link while it is read."""
    (tmp_path / "a" / "there").mkdir(parents=True)
    with pytest.raises((CallerError, HostError)):
        unpack(evil(*members), str(tmp_path / "a" / "there"))
    assert not list(tmp_path.rglob("outside"))


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100])
def test_no_archive(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(CallerError):
        unpack(io.BytesIO(data), str(tmp_path))


@pytest.mark.parametrize(
    "headers", [{"mtime": "inf"}, {"mtime": "nan"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, {"uid": "x"}]
)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_an_archive_with_odd_headers(tmp_path: Path, headers: dict[str, str], kind: bytes) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("odd")
        member.type, member.pax_headers = kind, headers
        tar.addfile(member)
        tar.addfile(tarfile.TarInfo("other"))
    with contextlib.suppress(CallerError, HostError):
        unpack(io.BytesIO(out.getvalue()), str(tmp_path))


def test_a_deep_tree(tmp_path: Path) -> None:
    """Deeper than Python calls functions, which is why the tools of others make and remove it."""
    top = tmp_path / "top"
    try:
        subprocess.run(["mkdir", "-p", f"{top}/{'d/' * 1000}"], check=True)
        with tarfile.open(fileobj=packed(top)) as tar:
            assert tar.getnames()[-1].count("/d") == 1000
    finally:
        subprocess.run(["rm", "-rf", top], check=True)


def test_a_torn_archive(source: Path, tmp_path: Path) -> None:
    whole = packed(source).getvalue()
    with pytest.raises((CallerError, HostError)):
        unpack(io.BytesIO(whole[: len(whole) // 2]), str(tmp_path / "new"))


@pytest.mark.root
def test_owners(source: Path, tmp_path: Path) -> None:
    os.chown(source / "index", 1234, 4321)
    unpack(packed(source / "index"), str(tmp_path / "mine"))
    unpack(packed(source / "index"), str(tmp_path / "theirs"), owners=True)
    assert (tmp_path / "mine").stat().st_uid == 0
    theirs = (tmp_path / "theirs").stat()
    assert (theirs.st_uid, theirs.st_gid) == (1234, 4321)


def test_a_file_that_shrinks_while_it_is_read(source: Path, tmp_path: Path) -> None:
    (source / "index").write_bytes(b"x" * 300_000)
    out = io.BytesIO()

    class Cutter:
        def write(self, data: bytes) -> None:
            out.write(data)
            os.truncate(source / "index", 10)

    pack(str(source / "index"), Cutter())
    unpack(io.BytesIO(out.getvalue()), str(tmp_path / "copy"))
    assert (tmp_path / "copy").stat().st_size == 300_000


def test_not_found_is_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="No such file"):
        check(str(tmp_path / "nothing"))
