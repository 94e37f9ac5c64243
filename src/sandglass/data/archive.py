"""Unpack a data archive by an allow-list: regular files and folders with plain relative names, and nothing else.

Reads tar (plain, gzip, xz, bzip2) and zip. Names, kinds, counts, bytes and the ratio to the archive's own size are
checked before a byte is written; files get mode 0644, folders 0755. The tree is made in a temporary folder beside the
target and renamed, so a target is whole or absent. Python's own tar filters are not relied on (CVE-2025-4517 and kin).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from sandglass.errors import Exit, Problem

MAX_MEMBERS = 2_000_000
MAX_BYTES = 512 << 30
MAX_RATIO = 100  # unpacked to packed; images do not shrink, a bomb shrinks a thousandfold
FREE_BYTES = 10 << 20  # the ratio is not asked of less than this
MAX_HEADER_BYTES = 1 << 20  # a long name or a pax header is held in memory
CHUNK_BYTES = 1 << 20

_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    OSError,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    NotImplementedError,
)


def extract(archive: Path, target: Path) -> Path:
    """Unpack `archive` as the new folder `target`, which must not exist.

    Raises Problem: A-101 (65) not an archive; A-102 (65) damaged or ended early; A-103 (77) unsafe name; A-104 (77)
    link; A-105 (77) device or other special member; A-106 (77) over a limit; A-107 (65) names that collide; A-108 (65)
    encrypted. A full disk stays an OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as staging:
        tree = _Tree(archive, Path(staging, "tree"))
        with archive.open("rb") as file:
            head = file.read(512)
            file.seek(0)
            if head.startswith(b"PK"):
                _unzip(file, tree)
            else:
                _untar(file, head, tree)
        tree.root.rename(target)
    return target


class _Tree:
    """The folder being filled; every member is admitted here or refused."""

    def __init__(self, archive: Path, root: Path) -> None:
        self.archive, self.root = archive, root
        self.members = 0
        self.unpacked = 0
        self.limit = min(MAX_BYTES, max(FREE_BYTES, MAX_RATIO * archive.stat().st_size))
        self.spelling: dict[str, tuple[str, bool]] = {}  # folded path -> path, is it a file
        root.mkdir(mode=0o755)
        root.chmod(0o755)

    def folder(self, name: str) -> None:
        if parts := self._admit(name):
            self._claim(parts, name, is_file=False)

    def file(self, name: str, source: IO[bytes]) -> None:
        parts = self._admit(name)
        if not parts:
            raise self.problem("A-103", Exit.REFUSED, f"unsafe name {name!r}", "a file needs a name")
        path = self._claim(parts, name, is_file=True)
        with path.open("xb") as opened:
            while chunk := source.read(CHUNK_BYTES):
                self.count_bytes(len(chunk))
                opened.write(chunk)
        path.chmod(0o644)

    def count_bytes(self, count: int) -> None:
        self.unpacked += count
        if self.unpacked > self.limit:
            size = self.archive.stat().st_size
            why = f"more than {self.limit:,} bytes come out of {size:,} (at most {MAX_RATIO} times as many)"
            raise self.problem("A-106", Exit.REFUSED, "the archive is a bomb, or far too large", why)

    def _admit(self, name: str) -> tuple[str, ...]:
        """The parts of a member's name; () for the root itself."""
        self.members += 1
        if self.members > MAX_MEMBERS:
            raise self.problem(
                "A-106", Exit.REFUSED, f"more than {MAX_MEMBERS:,} members", "no image set needs so many"
            )
        steps = name.split("/")
        unsafe = {
            "a NUL byte": "\0" in name,
            "an absolute path": name.startswith("/"),
            "a backslash": "\\" in name,
            "a drive letter": bool(re.match(r"[A-Za-z]:", name)),
            "a path that leaves the archive": ".." in steps,
            "longer than file systems allow": len(name) > 2048 or any(len(os.fsencode(step)) > 255 for step in steps),
        }
        why = next((text for text, found in unsafe.items() if found), "")
        if why:
            raise self.problem("A-103", Exit.REFUSED, f"unsafe name {name!r}", why)
        return tuple(part for part in steps if part not in ("", "."))

    def _claim(self, parts: tuple[str, ...], name: str, *, is_file: bool) -> Path:
        """The path of a member, its folders made. No two members may differ in case or Unicode form only."""
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            as_file = is_file and depth == len(parts)
            folded = unicodedata.normalize("NFC", path).casefold()
            first = self.spelling.get(folded)
            if first is None:
                self.spelling[folded] = (path, as_file)
                if not as_file:
                    (self.root / path).mkdir(mode=0o755)
                    (self.root / path).chmod(0o755)
            elif first != (path, False) or as_file:
                why = "the second would overwrite the first" + (
                    " where case does not count" if first[0] != path else ""
                )
                raise self.problem("A-107", Exit.CONTENT, f"members collide: {first[0]!r} and {name!r}", why)
        return self.root.joinpath(*parts)

    def problem(self, id: str, exit: Exit, what: str, why: str) -> Problem:
        fix = (
            "fetch the archive anew" if exit == Exit.CONTENT else "do not use this archive unless you trust who made it"
        )
        return Problem(id, exit, what, where=str(self.archive), why=why, fix=fix, kept="nothing was unpacked")


def _special(tree: _Tree, name: str, kind: str) -> Problem:
    if "link" in kind:
        return tree.problem("A-104", Exit.REFUSED, f"{name!r} is a {kind}", "links are not accepted in data archives")
    return tree.problem("A-105", Exit.REFUSED, f"{name!r} is a {kind}", "only regular files and folders are accepted")


def _if_of_the_disk(error: Exception) -> None:
    """Raise what the system said (a full disk); a decompressor's OSError has no number."""
    if isinstance(error, OSError) and error.errno:
        raise error


# --------------------------------------------------------------------------------------------- tar


def _untar(file: BinaryIO, head: bytes, tree: _Tree) -> None:
    stream = _Counted(_decompressed(file, head))

    class Member(tarfile.TarInfo):
        """Headers that tarfile would forgive are errors here: it takes a damaged one for the end of the archive."""

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Any:
            try:
                member = super().frombuf(buf, encoding, errors)
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                raise
            except tarfile.HeaderError as error:
                raise _Damaged(str(error)) from None
            if (
                member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
                and member.size > MAX_HEADER_BYTES
            ):
                raise tree.problem("A-106", Exit.REFUSED, "an oversized header", f"{member.size:,} bytes")
            return member

    try:
        with tarfile.open(fileobj=cast(Any, stream), mode="r|", tarinfo=Member, errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                if member.isdir():
                    tree.folder(member.name)
                elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse():
                    source = tar.extractfile(member)
                    assert source is not None
                    tree.file(member.name, source)
                else:
                    raise _special(tree, member.name, _KINDS.get(member.type, "special member"))
            while stream.read(CHUNK_BYTES):
                tree.count_bytes(CHUNK_BYTES)  # the tail: its check sums count too
    except (*_DAMAGED, _Damaged) as error:
        _if_of_the_disk(error)
        raise _broken(tree, error, stream.position, head) from None


_KINDS = {
    tarfile.SYMTYPE: "symbolic link",
    tarfile.LNKTYPE: "hard link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "pipe",
    tarfile.GNUTYPE_SPARSE: "sparse file",
}


class _Damaged(Exception):
    """A header that is neither a member nor the end."""


class _Counted:
    """A stream that knows how many bytes were read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.position = stream, 0

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.position += len(data)
        return data


def _decompressed(file: BinaryIO, head: bytes) -> IO[bytes]:
    if head.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile(file)
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    return file


def _broken(tree: _Tree, error: Exception, position: int, head: bytes) -> Problem:
    text = head.lstrip()[:15].lower()
    if tree.members == 0 and position <= max(len(head), 10_240):
        kind = (
            "a web page"
            if text.startswith((b"<!doctype", b"<html"))
            else "empty"
            if not head
            else "neither tar nor zip"
        )
        return tree.problem("A-101", Exit.CONTENT, f"{tree.archive.name} is not an archive", f"it is {kind}")
    return tree.problem(
        "A-102",
        Exit.CONTENT,
        f"{tree.archive.name} is damaged or ended early",
        f"at byte {position:,} of its contents: {error}",
    )


# --------------------------------------------------------------------------------------------- zip


def _unzip(file: BinaryIO, tree: _Tree) -> None:
    try:
        with zipfile.ZipFile(file) as opened:
            for member in opened.infolist():
                name = member.orig_filename  # `filename` ends at a NUL byte
                mode = member.external_attr >> 16
                kind = stat.S_IFMT(mode)
                if kind == stat.S_IFLNK:
                    raise _special(tree, name, "symbolic link")
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _special(tree, name, "special member")
                if member.flag_bits & 1:
                    raise tree.problem(
                        "A-108", Exit.CONTENT, f"{name!r} is encrypted", "there is no password to read it with"
                    )
                if member.is_dir():
                    tree.folder(name)
                else:
                    with opened.open(member) as source:
                        tree.file(name, source)
    except (*_DAMAGED, RuntimeError) as error:
        _if_of_the_disk(error)
        raise tree.problem(
            "A-102",
            Exit.CONTENT,
            f"{tree.archive.name} is damaged or ended early",
            f"{error}; {tree.members:,} members read",
        ) from None
