"""Downloads against a real server on this machine that cuts, lies, drips and refuses."""

import hashlib
import multiprocessing
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sandglass.data import download
from sandglass.data.catalog import CATALOG, Entry
from sandglass.data.download import fetch
from sandglass.errors import Exit, Problem

BODY = random.Random(0).randbytes(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


class Server(ThreadingHTTPServer):
    """Serves BODY at every path; the attributes are the faults."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.etag = '"one"'
        self.ranges = True  # knows Range
        self.cuts: list[int] = []  # bytes after which each of the next answers ends
        self.page = ""  # the content type under which to send PAGE instead
        self.codes: list[int] = []  # for the next answers
        self.drip = False
        self.astray = 0  # bytes by which a continued answer begins too late
        self.length = True
        self.requests: list[tuple[str, str]] = []  # path, Range
        self.sent = 0

    def url(self, name: str = "set.tar.gz") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range", "")
        server.requests.append((self.path, asked))
        code = server.codes.pop(0) if server.codes else 200
        body, kind, start = server.body, "application/gzip", 0
        if server.page:
            body, kind = PAGE, server.page
        elif code == 200 and asked and server.ranges and self.headers.get("If-Range", server.etag) == server.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            code = 206 if start < len(body) else 416
            start += server.astray
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("ETag", server.etag)
        if code == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if code == 416:
            self.send_header("Content-Range", f"bytes */{len(body)}")
        if server.length:
            self.send_header("Content-Length", str(len(body) - start if code < 300 else 0))
        self.end_headers()
        if code >= 300:
            return
        body = body[start:]
        try:
            if server.drip:
                for i in range(len(body)):
                    self.wfile.write(body[i : i + 1])
                    self.wfile.flush()
                    time.sleep(0.02)
            cut = server.cuts.pop(0) if server.cuts else len(body)
            self.wfile.write(body[:cut])
            server.sent += min(cut, len(body))
        except OSError:
            pass  # the client has had enough


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(download, "STALL_SECONDS", 0.5)


def entry(source: str, checksum: str = f"sha256:{SHA256}", **more: object) -> Entry:
    return Entry(name="set", format="folder", about="", source=source, checksum=checksum, **more)  # type: ignore[arg-type]


def refused(exit: Exit, given: Entry, raw: Path, **more: str) -> Problem:
    with pytest.raises(Problem) as caught:
        fetch(given, raw, **more)  # type: ignore[arg-type]
    assert caught.value.exit == exit, caught.value.screen()
    return caught.value


def left(raw: Path) -> list[str]:
    return sorted(path.name for path in (raw / "set").iterdir() if not path.name.endswith(".lock"))


def test_a_file_arrives_once_and_is_then_kept(server: Server, tmp_path: Path) -> None:
    path = fetch(entry(server.url()), tmp_path)
    assert path == tmp_path / "set/set.tar.gz" and path.read_bytes() == BODY
    assert fetch(entry(server.url()), tmp_path) == path
    assert len(server.requests) == 1
    assert left(tmp_path) == ["set.tar.gz"]


def test_md5_is_understood_and_a_missing_sum_is_allowed(server: Server, tmp_path: Path) -> None:
    assert fetch(entry(server.url(), f"md5:{hashlib.md5(BODY).hexdigest()}"), tmp_path / "a")
    assert fetch(entry(server.url(), ""), tmp_path / "b")
    assert refused(Exit.CONTENT, entry(server.url(), f"md5:{'0' * 32}"), tmp_path / "c").id == "N-104"


def test_a_cut_connection_is_continued_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.cuts = [len(BODY) // 2]
    path = fetch(entry(server.url()), tmp_path)
    assert path is not None and path.read_bytes() == BODY
    assert [asked for _, asked in server.requests] == ["", f"bytes={len(BODY) // 2}-"]
    assert server.sent <= 1.05 * len(BODY)


def test_a_second_call_continues_what_the_first_left(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 0, 0, 0, 0]
    problem = refused(Exit.NETWORK, entry(server.url()), tmp_path)
    assert "1,000,000 bytes" in problem.kept
    server.cuts.clear()
    assert fetch(entry(server.url()), tmp_path)
    assert server.requests[-1][1] == "bytes=1000000-"
    assert server.sent == len(BODY)


def test_many_cuts_that_bring_something_are_endured(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PROGRESS_BYTES", 100_000)
    server.cuts = [200_000] * 12
    assert fetch(entry(server.url()), tmp_path)


def test_a_server_without_range_begins_anew(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [len(BODY) // 2]
    path = fetch(entry(server.url()), tmp_path)
    assert path is not None and path.read_bytes() == BODY


def test_a_server_that_continues_elsewhere_begins_anew(server: Server, tmp_path: Path) -> None:
    server.astray, server.cuts = 7, [1_000_000]
    path = fetch(entry(server.url(), ""), tmp_path)  # without a sum to notice it
    assert path is not None and path.read_bytes() == BODY


def test_two_versions_are_never_joined(server: Server, tmp_path: Path) -> None:
    """The file changes between the halves: If-Range makes the server send the new one whole."""
    server.body, server.cuts = bytes(len(BODY)), [1_000_000, 0, 0, 0, 0]
    refused(Exit.NETWORK, entry(server.url(), ""), tmp_path)
    server.body, server.etag, server.cuts = BODY, '"two"', []
    path = fetch(entry(server.url(), ""), tmp_path)
    assert path is not None and path.read_bytes() == BODY


def test_what_was_whole_before_the_rename_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/set.tar.gz.part").write_bytes(BODY)
    assert fetch(entry(server.url()), tmp_path)
    assert server.sent == 0


@pytest.mark.parametrize("kind", ["text/html", "application/gzip"])
def test_a_web_page_is_not_a_data_set(server: Server, tmp_path: Path, kind: str) -> None:
    server.page = kind
    assert refused(Exit.NETWORK, entry(server.url()), tmp_path).id == "N-102"
    assert left(tmp_path) == []


def test_a_login_page_half_way_costs_nothing_of_what_is_there(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 0, 0, 0, 0]
    refused(Exit.NETWORK, entry(server.url()), tmp_path)
    server.page = "text/html"
    refused(Exit.NETWORK, entry(server.url()), tmp_path)
    assert (tmp_path / "set/set.tar.gz.part").stat().st_size == 1_000_000


def test_a_wrong_sum_sets_the_file_aside(server: Server, tmp_path: Path) -> None:
    server.body = BODY[:-1] + b"!"
    problem = refused(Exit.CONTENT, entry(server.url(), bytes=len(BODY)), tmp_path)
    assert problem.id == "N-104" and SHA256 in problem.why and hashlib.sha256(server.body).hexdigest() in problem.why
    assert left(tmp_path) == ["set.tar.gz.bad"]
    server.body = BODY
    assert fetch(entry(server.url()), tmp_path)  # and the next try is not hindered by it


def test_a_kept_file_that_rotted_is_set_aside(server: Server, tmp_path: Path) -> None:
    path = fetch(entry(server.url()), tmp_path)
    assert path is not None
    path.write_bytes(BODY[:-1])
    assert refused(Exit.CONTENT, entry(server.url()), tmp_path).id == "N-104"
    assert left(tmp_path) == ["set.tar.gz.bad"]


def test_a_drip_is_a_stall_and_the_next_address_is_asked(server: Server, tmp_path: Path) -> None:
    dripping = Server()
    dripping.drip = True
    threading.Thread(target=dripping.serve_forever, daemon=True).start()
    began = time.monotonic()
    path = fetch(entry(server.url()), tmp_path, mirror=dripping.url("").rstrip("/"))
    assert path is not None and path.read_bytes() == BODY
    assert 0.5 < time.monotonic() - began < 5
    assert len(dripping.requests) == 1
    dripping.shutdown()
    dripping.server_close()


def test_silence_is_a_stall(server: Server, tmp_path: Path) -> None:
    import socket

    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()  # the system accepts; nobody answers
        problem = refused(Exit.NETWORK, entry(f"http://127.0.0.1:{mute.getsockname()[1]}/a.tgz"), tmp_path)
    assert "stalled" in problem.where


def test_passing_faults_are_tried_again_and_lasting_ones_are_not(server: Server, tmp_path: Path) -> None:
    server.codes = [503, 429, 500]
    assert fetch(entry(server.url()), tmp_path / "a")
    server.requests.clear()
    server.codes = [404]
    assert "HTTP 404" in refused(Exit.NETWORK, entry(server.url()), tmp_path / "b").where
    assert len(server.requests) == 1


def test_no_network_says_what_to_do(tmp_path: Path) -> None:
    problem = refused(Exit.NETWORK, entry("http://127.0.0.1:9/set.tar.gz"), tmp_path)
    assert problem.id == "N-101" and "refused" in problem.where
    assert str(tmp_path / "set/set.tar.gz") in problem.fix and "data.mirror" in problem.fix


def test_too_large_is_refused_before_and_while_it_comes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(Exit.REFUSED, entry(server.url(), bytes=1_000), tmp_path / "a").id == "N-103"
    assert not (tmp_path / "a/set/set.tar.gz.part").exists()
    monkeypatch.setattr(download, "MAX_BYTES", 1_000_000)
    monkeypatch.setattr(download, "CHUNK_BYTES", 10_000)
    server.length = False  # it does not say how much it will be
    assert refused(Exit.REFUSED, entry(server.url()), tmp_path / "b").id == "N-103"
    assert (tmp_path / "b/set/set.tar.gz.part").stat().st_size <= 1_010_000


def test_the_mirror_is_asked_first(server: Server, tmp_path: Path) -> None:
    fetch(entry("http://127.0.0.1:9/far/set.tar.gz"), tmp_path, mirror=server.url("near"))
    assert server.requests == [("/near/set.tar.gz", "")]


def test_a_mirror_folder_is_used_in_place_and_its_files_are_not_renamed(server: Server, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    given = entry(server.url())
    assert fetch(given, tmp_path / "a", mirror=str(mirror)) == tmp_path / "a/set/set.tar.gz"  # not there: fetched
    (mirror / "set.tar.gz").write_bytes(BODY)
    assert fetch(given, tmp_path / "b", mirror=str(mirror)) == mirror / "set.tar.gz"
    (mirror / "set.tar.gz").write_bytes(b"else")
    assert refused(Exit.CONTENT, given, tmp_path / "c", mirror=str(mirror)).kept == "nothing changed"
    assert [p.name for p in mirror.iterdir()] == ["set.tar.gz"]


def test_local_sources_are_used_in_place(tmp_path: Path) -> None:
    file = tmp_path / "mine.tar.gz"
    file.write_bytes(BODY)
    assert fetch(entry(str(file)), tmp_path / "raw") == file
    assert fetch(entry(str(tmp_path), ""), tmp_path / "raw") == tmp_path
    assert not (tmp_path / "raw").exists()
    assert refused(Exit.CONTENT, entry(str(file), f"sha256:{'0' * 64}"), tmp_path / "raw").kept == "nothing changed"
    assert file.read_bytes() == BODY
    assert refused(Exit.MISSING, entry(str(tmp_path / "no")), tmp_path).id == "D-102"
    assert refused(Exit.CONFIG, entry(str(tmp_path)), tmp_path).id == "N-105"


def test_only_http_is_spoken(tmp_path: Path) -> None:
    assert refused(Exit.CONFIG, entry("file:///etc/passwd"), tmp_path).id == "N-105"


def test_an_embedded_set_has_nothing_to_fetch(tmp_path: Path) -> None:
    assert fetch(CATALOG["digits"], tmp_path) is None


def test_nabirds_says_what_to_fetch_from_where_and_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(Problem) as caught:
        fetch(CATALOG["nabirds"], tmp_path)
    assert caught.value.exit == Exit.MISSING and caught.value.id == "D-103"
    for text in ("https://dl.allaboutbirds.org/nabirds", "nabirds.tar.gz", str(tmp_path / "nabirds/nabirds.tar.gz")):
        assert text in caught.value.fix


def test_what_was_put_there_by_hand_is_taken(tmp_path: Path) -> None:
    given = Entry(name="set", format="nabirds", about="", by_hand="set.tgz", checksum=f"sha256:{SHA256}")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/set.tgz").write_bytes(BODY)
    assert fetch(given, tmp_path) == tmp_path / "set/set.tgz"


def _fetch_in_a_process(source: str, raw: Path, gate: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    fetch(entry(source), raw)


def test_four_processes_make_one_request(server: Server, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(4)
    jobs = [context.Process(target=_fetch_in_a_process, args=(server.url(), tmp_path, gate)) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(20)
    assert [job.exitcode for job in jobs] == [0] * 4
    assert len(server.requests) == 1
    assert (tmp_path / "set/set.tar.gz").read_bytes() == BODY


def test_progress_in_a_log_is_a_line_a_tenth(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "CHUNK_BYTES", 50_000)
    lines: list[str] = []
    fetch(entry(server.url()), tmp_path, say=lines.append)
    assert len(lines) == 10
    assert lines[-1].endswith("100 % of 3 MB")
