"""Fetch an archive once, whole and verified: mirror first, then the official address.

Bytes go to `<file>.part` and are continued by a Range request (RFC 9110, 14.2) guarded by If-Range; the file gets its
name only when the checksum fits. One process downloads, the others wait for it. Local sources are used where they lie.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from sandglass import __version__
from sandglass.data.catalog import Entry
from sandglass.errors import Exit, Problem

Say = Callable[[str], None]

ATTEMPTS = 4  # in a row that bring less than PROGRESS_BYTES
PROGRESS_BYTES = 1 << 20
BACKOFF_SECONDS = 1.0  # doubled after each
STALL_SECONDS = 30.0  # less than SLOWEST_BYTES in this time is a stall
SLOWEST_BYTES = 1 << 15
MAX_BYTES = 64 << 30  # of an archive whose size is not known
CHUNK_BYTES = 1 << 20


def fetch(entry: Entry, raw: Path, mirror: str | None = None, say: Say = print) -> Path | None:
    """The archive or folder of a data set, verified; None for an embedded one. Downloads go to raw/<name>/.

    Raises Problem: D-102 (66) a local source is not there; D-103 (66) it must be fetched by hand; N-101 (69) no
    address answers; N-102 (69) a web page came instead; N-103 (77) too large; N-104 (65) wrong checksum; N-105 (78)
    an address that cannot be used.
    """
    if not entry.source and not entry.by_hand:
        return None
    if entry.source and not _is_url(entry.source):
        path = _local(entry)
        if not path.is_dir():
            _verify(path, entry, set_aside=False)
        return path
    target = _target(entry, raw)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if found := _brought(entry, target, mirror):
            _verify(found, entry, set_aside=found == target)
            return found
        addresses = [f"{mirror.rstrip('/')}/{target.name}"] if mirror and _is_url(mirror) else []
        addresses += [entry.source] if entry.source else []
        if not addresses:
            raise _by_hand(entry, target, mirror)
        _download(entry, addresses, target, say)
        _verify(target.with_name(f"{target.name}.part"), entry, set_aside=True, final=target)
    return target


def at_hand(entry: Entry, raw: Path, mirror: str | None = None) -> Path | None:
    """Where `fetch` would find the archive or folder without a network, unverified; None if it would download it.

    Raises Problem as `fetch` does for what is not there and cannot be downloaded.
    """
    if not entry.source and not entry.by_hand:
        return None
    if entry.source and not _is_url(entry.source):
        return _local(entry)
    target = _target(entry, raw)
    found = _brought(entry, target, mirror)
    if not found and not entry.source and not (mirror and _is_url(mirror)):
        raise _by_hand(entry, target, mirror)
    return found


def _target(entry: Entry, raw: Path) -> Path:
    """Where its archive is kept."""
    name = entry.by_hand or unquote(Path(urlsplit(entry.source).path).name)
    if name in ("", ".", ".."):
        raise Problem("N-105", Exit.CONFIG, f"the source of {entry.name} names no file", where=entry.source)
    return raw / entry.name / name


def _brought(entry: Entry, target: Path, mirror: str | None) -> Path | None:
    """The archive, if it was fetched before or lies in a folder that serves as a mirror."""
    if target.exists():
        return target
    if mirror and not _is_url(mirror):
        folders = Path(mirror), Path(mirror, entry.name)
        return next((folder / target.name for folder in folders if (folder / target.name).is_file()), None)
    return None


def _is_url(text: str) -> bool:
    if "://" not in text:
        return False
    if not text.startswith(("http://", "https://")):
        raise Problem("N-105", Exit.CONFIG, f"cannot fetch {text}", why="only http:// and https:// are spoken here")
    return True


def _local(entry: Entry) -> Path:
    """The folder or archive on this machine that a data set names."""
    path = Path(entry.source).expanduser()
    if not path.exists():
        raise Problem(
            "D-102",
            Exit.MISSING,
            f"the source of {entry.name} is not there",
            where=str(path),
            fix=f"data.sets.{entry.name}.source",
        )
    if path.is_dir() and entry.checksum:
        why = "a checksum is that of one file"
        raise Problem(
            "N-105", Exit.CONFIG, f"{entry.name} has a sha256, and its source is a folder", where=str(path), why=why
        )
    return path


def _by_hand(entry: Entry, target: Path, mirror: str | None) -> Problem:
    return Problem(
        "D-103",
        Exit.MISSING,
        f"{entry.name} has to be fetched by hand",
        where=f"{target} is not there" + (f", nor {Path(mirror, entry.by_hand)}" if mirror else ""),
        why=f"licence: {entry.licence}",
        fix=f"accept the terms at {entry.homepage},\nsave {entry.by_hand} from there, and put it at {target}",
        kept="nothing changed",
    )


def _verify(file: Path, entry: Entry, *, set_aside: bool, final: Path | None = None) -> None:
    """Check the sum of `file`; if it fits, give it its `final` name, else (if it is ours) set it aside as .bad."""
    kind, _, expected = entry.checksum.partition(":")
    if kind:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, kind).hexdigest()
        if found != expected:
            name = (final or file).name
            bad = file.with_name(f"{name}.bad")
            size = file.stat().st_size
            if set_aside:
                file.replace(bad)
                _tag(file).unlink(missing_ok=True)
            published = f" (published: {entry.bytes:,})" if entry.bytes else ""
            raise Problem(
                "N-104",
                Exit.CONTENT,
                f"{name} is not the file it should be",
                where=str(bad if set_aside else file),
                why=f"{kind} {found}, expected {expected}; {size:,} bytes{published}",
                fix="run again to download anew, or declare what you have under data.sets with its sha256",
                kept=f"the file, as {bad.name}; nothing was unpacked" if set_aside else "nothing changed",
            )
    if final:
        file.replace(final)
        _tag(file).unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------- over the network


class _Cut(Exception):
    """The connection failed; trying again may help."""


class _Useless(Exception):
    """This address will not give the file; another may."""


def _download(entry: Entry, addresses: list[str], target: Path, say: Say) -> None:
    """Bring `target`.part to its full length from the first address that can."""
    part = target.with_name(f"{target.name}.part")
    reasons, code = [], "N-101"
    for address in addresses:
        failures, wait = 0, BACKOFF_SECONDS
        while failures < ATTEMPTS:
            before = _size(part)
            try:
                with Meter(f"{entry.name} from {urlsplit(address).netloc}", say) as meter:
                    _transfer(entry, address, part, meter)
                return
            except _Useless as error:
                reasons.append(f"{address}: {error}")
                code = "N-102" if "web page" in str(error) else code
                break
            except _Cut as error:
                fresh = _size(part) - before >= PROGRESS_BYTES
                failures, wait = (1, BACKOFF_SECONDS) if fresh else (failures + 1, wait)
                if failures == ATTEMPTS:
                    reasons.append(f"{address}: {error}")
                else:
                    time.sleep(wait)
                    wait *= 2
    kept = f"{_size(part):,} bytes in {part}; they are continued" if _size(part) else "nothing changed"
    advice = f"run this where there is a network, or put the file at {target},"
    raise Problem(
        code,
        Exit.NETWORK,
        f"cannot download {entry.name}" if code == "N-101" else f"a server sent a web page instead of {entry.name}",
        where="\n".join(reasons),
        fix=f"{advice}\nor set data.mirror to a folder or an address that has it",
        kept=kept,
    )


def _transfer(entry: Entry, address: str, part: Path, meter: Meter) -> None:
    """One connection: append to `part`, or begin it anew if the server does not continue it."""
    limit, have = entry.bytes or MAX_BYTES, _size(part)
    headers = {"User-Agent": f"sandglass/{__version__}", "Accept-Encoding": "identity"}
    # Without a validator only the checksum can tell that the two halves belong together.
    validator = _tag(part).read_text() if _tag(part).exists() else ""
    if have and (validator or entry.checksum):
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {})
    with _open(urllib.request.Request(address, headers=headers)) as response:
        if response.status == 416:  # nothing there after what we have: it is whole, or not a beginning of this file
            if response.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink()
            raise _Cut("the server has fewer bytes than were kept; starting anew")
        start = _first_byte(response)
        if start not in (0, have):
            part.unlink()
            raise _Cut("the server continued at the wrong byte; starting anew")
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        if total is not None and total > limit:
            raise _too_large(entry, address, total, limit)
        began = time.monotonic()
        head = b""
        while start == 0 and len(head) < 32 and (chunk := _read(response)):
            head += chunk
        if start == 0 and (response.headers.get_content_type() == "text/html" or looks_like_html(head)):
            raise _Useless("a web page came instead of the file (a login, a proxy, a moved page?)")
        _remember(part, response)
        meter.begin(start, total)
        brought = 0
        with part.open("ab" if start else "wb") as file:
            while chunk := head or _read(response):
                head = b""
                file.write(chunk)
                meter.advance(len(chunk))
                if meter.done > limit:
                    raise _too_large(entry, address, meter.done, limit)
                brought += len(chunk)
                if (spent := time.monotonic() - began) > STALL_SECONDS:
                    if brought < SLOWEST_BYTES:
                        raise _Useless(f"stalled: {brought:,} bytes in {spent:.0f} s")
                    began, brought = time.monotonic(), 0
        if total is not None and meter.done < total:
            raise _Cut(f"the connection ended at byte {meter.done:,} of {total:,}")


def _open(request: urllib.request.Request) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=STALL_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error  # an answer to a Range, with headers that matter
        error.close()
        passing = error.code in (408, 425, 429) or error.code >= 500
        raise (_Cut if passing else _Useless)(f"HTTP {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _network_failure(error) from None


def _read(response: Any) -> bytes:
    """What has arrived, at most CHUNK_BYTES; read1 returns after each packet, so a slow drip is noticed."""
    try:
        return bytes(response.read1(CHUNK_BYTES))
    except (OSError, http.client.HTTPException) as error:
        raise _network_failure(error) from None


def _network_failure(error: Exception) -> _Cut | _Useless:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return _Useless(f"stalled: nothing in {STALL_SECONDS:g} s")
    if isinstance(reason, socket.gaierror):
        return _Cut("the name is not found (no network?)")
    return _Cut(str(reason) or type(reason).__name__)


def _first_byte(response: Any) -> int:
    """Where the answer begins in the file: 0 for a whole answer, -1 for a part that does not say."""
    if response.status != 206:
        return 0
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _remember(part: Path, response: Any) -> None:
    """Keep a strong validator beside the part, for If-Range."""
    etag = response.headers.get("ETag", "")
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    if validator:
        _tag(part).write_text(validator)
    else:
        _tag(part).unlink(missing_ok=True)


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def looks_like_html(head: bytes) -> bool:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n")[:14].lower().startswith((b"<!doctype html", b"<html"))


def _too_large(entry: Entry, address: str, size: int, limit: int) -> Problem:
    what = f"{entry.name} is larger than {'published' if entry.bytes else 'allowed'}"
    return Problem(
        "N-103", Exit.REFUSED, what, where=address, why=f"{size:,} bytes, at most {limit:,}", kept="nothing is unpacked"
    )


# --------------------------------------------------------------------------------------------- progress


class Meter:
    """How far a transfer is: a bar on a terminal, in a log one line at each tenth. Use as a context."""

    def __init__(self, label: str, say: Say) -> None:
        self.label, self.say = label, say
        self.total: int | None = None  # bytes, once known
        self.done = 0
        self.bar: Any = None

    def __enter__(self) -> Meter:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
            self.row = self.bar.add_task(self.label, total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def begin(self, done: int, total: int | None) -> None:
        self.done, self.total = done, total

    def advance(self, count: int) -> None:
        before, self.done = self.done, self.done + count
        if self.bar:
            self.bar.update(self.row, completed=self.done, total=self.total)
        elif self.total and before * 10 // self.total < self.done * 10 // self.total:
            self.say(f"{self.label}: {self.done * 100 // self.total} % of {self.total / 1e6:,.0f} MB")
