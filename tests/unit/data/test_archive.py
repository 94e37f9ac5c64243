"""Unpacking: what is ordinary comes out whole, what is hostile leaves nothing behind."""

import gzip
import io
import os
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sandglass.data import archive
from sandglass.data.archive import extract
from sandglass.errors import Exit, Problem

CONTENT = b"pixels"


def member(
    name: str, kind: bytes = tarfile.REGTYPE, content: bytes = CONTENT, link: str = "", mode: int = 0o644
) -> Callable:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo()
        info.name, info.type, info.linkname, info.mode = name, kind, link, mode
        info.size = len(content) if kind == tarfile.REGTYPE else 0
        tar.addfile(info, io.BytesIO(content))

    return add


def tar_of(path: Path, *members: Callable, mode: str = "w:gz", form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, mode, format=form) as tar:
        for add in members:
            add(tar)
    return path


def refused(path: Path, folder: Path, exit: Exit) -> Problem:
    """The problem that extracting raises, after checking that the folder holds what it held."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(Problem) as caught:
        extract(path, folder / "out")
    assert caught.value.exit == exit, caught.value.screen()
    assert sorted(folder.rglob("*")) == before
    return caught.value


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_a_tar_comes_out_whole(tmp_path: Path, mode: str) -> None:
    big = random.Random(0).randbytes(3_000_000)
    path = tar_of(
        tmp_path / "a.tar",
        member("./", tarfile.DIRTYPE),
        member("./set/", tarfile.DIRTYPE),
        member("./set/one.jpg", content=big),
        member("set/deep/er/two.jpg", mode=0o4777),
        member("set/" + "long" * 40 + ".jpg"),
        mode=mode,
    )
    out = extract(path, tmp_path / "out")
    assert (out / "set/one.jpg").read_bytes() == big
    assert (out / "set/deep/er/two.jpg").read_bytes() == CONTENT
    assert (out / "set" / ("long" * 40 + ".jpg")).exists()
    assert stat.S_IMODE((out / "set/deep/er/two.jpg").stat().st_mode) == 0o644
    assert stat.S_IMODE((out / "set/deep").stat().st_mode) == 0o755
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_zip_comes_out_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.mkdir("set")
        made.writestr("set/one.jpg", CONTENT)
    assert (extract(path, tmp_path / "out") / "set/one.jpg").read_bytes() == CONTENT


def test_the_real_archives_come_out_as_tarfile_has_them(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "imagenette/imagenette2-224sq-subset.tgz"
    out = extract(path, tmp_path / "out")
    with tarfile.open(path) as tar:
        files = {info.name: info.size for info in tar if info.isfile()}
    assert {str(p.relative_to(out)): p.stat().st_size for p in out.rglob("*") if p.is_file()} == files


@pytest.mark.parametrize(
    "name",
    [
        "../out.txt",
        "a/../../out.txt",
        "/tmp/out.txt",
        "C:\\out.txt",
        "c:out.txt",
        "a\\..\\..\\out.txt",
        "x" * 300,
        "..",
    ],
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_lead_elsewhere(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "tar":
        tar_of(path, member("good.jpg"), member(name))
    else:
        with zipfile.ZipFile(path, "w") as made:
            made.writestr("good.jpg", CONTENT)
            made.writestr(zipfile.ZipInfo(name), CONTENT)
    problem = refused(path, tmp_path, Exit.REFUSED)
    assert repr(name) in problem.what


def test_a_nul_in_a_zip_name(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("abcXdef", CONTENT)
    path.write_bytes(path.read_bytes().replace(b"abcXdef", b"abc\0def"))
    assert "NUL" in refused(path, tmp_path, Exit.REFUSED).why


def test_random_names_never_write_outside(tmp_path: Path) -> None:
    """400 names made of dangerous pieces: each is refused whole or lands below the target."""
    chooser = random.Random(0)
    pieces = ["..", ".", "", "/", "//", "a", "A", "\\", "C:", "~", "\n", "é", "..a", "a..", " ", "\udcff", "-"]
    target = tmp_path / "box"
    target.mkdir()
    came = 0
    for i in range(400):
        name = "/".join(chooser.choices(pieces, k=chooser.randint(1, 5))) or "x"
        path = tar_of(tmp_path / "a.tar", member(name), mode="w")
        try:
            out = extract(path, target / str(i))
            files = [p for p in out.rglob("*") if not p.is_dir()]
            assert len(files) == 1 and not files[0].is_symlink()
            came += 1
        except Problem as problem:
            assert problem.id == "A-103"
            assert not (target / str(i)).exists()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "box"]
    assert 50 < came < 350


@pytest.mark.parametrize(
    "members",
    [
        [member("a", tarfile.SYMTYPE, link="/etc/passwd")],
        [member("a", tarfile.SYMTYPE, link="b")],
        [member("a", tarfile.SYMTYPE, link=".")],
        [member("b"), member("a", tarfile.LNKTYPE, link="b")],
        [member("a", tarfile.SYMTYPE, link=".."), member("a/escaped.txt")],
    ],
)
def test_links(tmp_path: Path, members: list[Callable]) -> None:
    assert refused(tar_of(tmp_path / "a.tgz", *members), tmp_path, Exit.REFUSED).id == "A-104"


def test_a_link_in_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as made:
        info = zipfile.ZipInfo("a")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(info, "/etc/passwd")
    assert refused(path, tmp_path, Exit.REFUSED).id == "A-104"


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.CONTTYPE, b"Z"])
def test_special_members(tmp_path: Path, kind: bytes) -> None:
    assert refused(tar_of(tmp_path / "a.tgz", member("a", kind)), tmp_path, Exit.REFUSED).id == "A-105"


@pytest.mark.parametrize(
    "names", [["a.jpg", "a.jpg"], ["a.jpg", "A.JPG"], ["x/a", "X/b"], ["a", "a/b"], ["é", "e\u0301"]]
)
def test_names_that_collide(tmp_path: Path, names: list[str]) -> None:
    path = tar_of(tmp_path / "a.tgz", *(member(name) for name in names))
    assert refused(path, tmp_path, Exit.CONTENT).id == "A-107"


def test_a_bomb_is_stopped_at_its_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar_of(tmp_path / "a.tgz", member("zeros", content=bytes(50 << 20)))
    assert path.stat().st_size < 60_000
    written = []
    count = archive._Tree.count_bytes
    monkeypatch.setattr(archive._Tree, "count_bytes", lambda tree, n: (count(tree, n), written.append(n)))
    assert refused(path, tmp_path, Exit.REFUSED).id == "A-106"
    assert sum(written) <= archive.FREE_BYTES


def test_a_zip_bomb_and_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("zeros", bytes(50 << 20))
    assert refused(path, tmp_path, Exit.REFUSED).id == "A-106"
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    path = tar_of(tmp_path / "a.tgz", *(member(str(i)) for i in range(5)))
    assert "members" in refused(path, tmp_path, Exit.REFUSED).what


def test_an_endless_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 << 20
    header = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tgz").write_bytes(gzip.compress(header + b"a" * (8 << 20) + bytes(1024)))
    assert "header" in refused(tmp_path / "a.tgz", tmp_path, Exit.REFUSED).what


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "zip"])
def test_a_truncated_archive_leaves_nothing(tmp_path: Path, kept: float, mode: str) -> None:
    noise = [random.Random(i).randbytes(50_000) for i in range(4)]
    path = tmp_path / "a"
    if mode == "zip":
        with zipfile.ZipFile(path, "w") as made:
            for i, content in enumerate(noise):
                made.writestr(str(i), content)
    else:
        tar_of(path, *(member(str(i), content=content) for i, content in enumerate(noise)), mode=mode)
    whole = path.read_bytes().rstrip(b"\0") if mode == "w" else path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert "ended early" in refused(path, tmp_path, Exit.CONTENT).what


def test_a_tar_cut_between_two_members_is_not_whole(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", member("a"), member("b"), mode="w")
    path.write_bytes(path.read_bytes()[:1024])  # one header, one block of content, no end
    assert refused(path, tmp_path, Exit.CONTENT).id == "A-102"


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", member("a"), member("b"), mode="w")
    data = bytearray(path.read_bytes())
    data[1024 + 3] ^= 0xFF  # in the name of the second member
    path.write_bytes(data)
    assert refused(path, tmp_path, Exit.CONTENT).id == "A-102"


def test_a_flipped_byte_fails_the_check_sum_of_gzip(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tgz", member("a", content=random.Random(0).randbytes(100_000)))
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # the stored CRC, after all data
    path.write_bytes(data)
    assert refused(path, tmp_path, Exit.CONTENT).id == "A-102"


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (b"<!DOCTYPE html><html>", "web page"), (b"junk" * 1000, "neither tar nor zip")],
)
def test_what_is_no_archive(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.tgz").write_bytes(content)
    assert said in refused(tmp_path / "a.tgz", tmp_path, Exit.CONTENT).why


def test_a_full_disk_is_not_blamed_on_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar_of(tmp_path / "a.tgz", member("a"))

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(archive._Tree, "count_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        extract(path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tgz"]
