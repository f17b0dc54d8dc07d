"""Downloads from servers of our own that break off and lie, and archives made to do harm."""

import errno
import functools
import gzip
import hashlib
import http.server
import io
import random
import re
import ssl
import stat
import struct
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import archives
import pytest


def zip_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("frames.bin", content)
    return buffer.getvalue()


CONTENT = zip_of(bytes(range(256)) * 40)
# Another edition of the same length.
CHANGED = zip_of(bytes(reversed(range(256))) * 40)
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; `breaks` answers end after 1000 bytes, `ranges` tells whether it can start in the middle."""

    def __init__(self, state, *arguments):
        self.state = state
        super().__init__(*arguments)

    def do_GET(self):
        self.state["requests"].append(self.headers.get("Range"))
        if self.path != "/data.zip":
            self.send_error(404)
            return
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if "Range" in self.headers else 0
        start = start if self.state["ranges"] else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        end = None
        if self.state["breaks"]:
            self.state["breaks"] -= 1
            end = start + 1000
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    """(address, state) of a running server."""
    state = {"requests": [], "breaks": 0, "ranges": True}
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, state))
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/data.zip", state
    httpd.shutdown()
    httpd.server_close()


def get(url, file, **options):
    return archives.download(url, file, progress=False, wait=0, **options)


def test_a_download_that_breaks_off_is_continued(server, tmp_path):
    url, state = server
    state["breaks"] = 2
    file = get(url, tmp_path / "data.zip")
    assert file.read_bytes() == CONTENT
    assert state["requests"] == [None, "bytes=1000-", "bytes=2000-"]
    get(url, file)
    assert len(state["requests"]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["data.zip"]


def test_a_later_call_goes_on_and_a_whole_part_only_gets_its_name(server, tmp_path):
    url, state = server
    state["breaks"] = 1
    with pytest.raises(OSError, match="the same command continues"):
        get(url, tmp_path / "data.zip", retries=0)
    assert (tmp_path / "data.zip.part").stat().st_size == 1000
    assert get(url, tmp_path / "data.zip").read_bytes() == CONTENT
    (tmp_path / "again.zip.part").write_bytes(CONTENT)
    assert get(url, tmp_path / "again.zip").read_bytes() == CONTENT


def test_a_server_that_cannot_start_in_the_middle(server, tmp_path):
    url, state = server
    state.update(breaks=1, ranges=False)
    assert get(url, tmp_path / "data.zip").read_bytes() == CONTENT


def test_what_is_not_there_is_not_asked_for_again(server, tmp_path):
    url, state = server
    with pytest.raises(OSError, match="404"):
        get(url.replace("data", "none"), tmp_path / "none.zip")
    assert len(state["requests"]) == 1


def test_a_wrong_checksum_is_never_taken_for_complete(server, tmp_path):
    url, _ = server
    with pytest.raises(ValueError, match="expected 0123"):
        get(url, tmp_path / "data.zip", checksum="0123")
    assert not list(tmp_path.iterdir())
    (tmp_path / "right").write_bytes(CONTENT)
    assert get(url, tmp_path / "data.zip", checksum=archives.md5(tmp_path / "right")).exists()


def test_a_full_disk_is_found_before_the_first_byte(server, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    with pytest.raises(OSError, match="not enough disk space"):
        get(server[0], tmp_path / "data.zip")


# ---------------------------------------------------------------- answers that are not the file


class Scripted(http.server.BaseHTTPRequestHandler):
    """Gives one prepared answer after the other, (status, headers, body), and the last one for ever."""

    def __init__(self, answers, requests, *arguments):
        self.answers, self.requests = answers, requests
        super().__init__(*arguments)

    def do_GET(self):
        self.requests.append({name: self.headers[name] for name in ("Range", "If-Range") if name in self.headers})
        status, headers, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if callable(body):
            body(self.wfile)
        else:
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def scripted():
    """A function that starts a server with these answers: (address, requests as they come)."""
    servers = []

    def start(*answers):
        requests = []
        httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Scripted, list(answers), requests))
        servers.append(httpd)
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{httpd.server_port}/data.zip", requests

    yield start
    for httpd in servers:
        httpd.shutdown()
        httpd.server_close()


def whole(content=CONTENT, **headers):
    return 200, {"Content-Length": len(content)} | named(headers), content


def cut(content=CONTENT, at=1000, **headers):
    return 200, {"Content-Length": len(content)} | named(headers), content[:at]


def rest(content=CONTENT, at=1000, claimed=None, total=None, **headers):
    """Bytes from `at`; `claimed` and `total` are what the answer says of them."""
    claimed, total = at if claimed is None else claimed, total or len(content)
    span = {"Content-Length": len(content) - at, "Content-Range": f"bytes {claimed}-{total - 1}/{total}"}
    return 206, span | named(headers), content[at:]


def named(headers):
    return {name.replace("_", "-"): value for name, value in headers.items()}


def chunked(content, end):
    """A body in chunks, with or without the last one that marks the end."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (content[:600], content[600:]) if piece)
    return 200, {"Transfer-Encoding": "chunked"}, body + (b"0\r\n\r\n" if end else b"4000\r\nabc")


MONDAY, TUESDAY = "Mon, 06 Jan 2025 10:00:00 GMT", "Tue, 07 Jan 2025 10:00:00 GMT"

# What a server does at the first tries, before it gives all of CONTENT.
RETRIED = {
    "shorter than announced": [cut()],
    "cut without a length": [(200, {}, CONTENT[:1000])],
    "cut in the middle of a chunk": [chunked(CONTENT[:1000], end=False)],
    "chunks of half a file, ended properly": [chunked(CONTENT[:1000], end=True)],
    "a range that begins elsewhere": [cut(), rest(at=900)],
    "a range that begins elsewhere than it says": [cut(), rest(at=900, claimed=1000)],
    "a range that begins and ends elsewhere": [
        cut(),
        (206, {"Content-Range": f"bytes 900-{len(CONTENT) - 101}/{len(CONTENT)}"}, CONTENT[900:-100]),
    ],
    "a part without a range": [cut(), (206, {"Content-Length": len(CONTENT) - 1000}, CONTENT[1000:])],
    "a range of another unit": [cut(), (206, {"Content-Range": "pages 1-2/3"}, CONTENT[1000:])],
    "a part that nobody asked for": [rest(at=1000)],
    "a file with another tag": [cut(CHANGED, ETag='"a"'), rest(ETag='"b"')],
    "a file without its tag": [cut(CHANGED, ETag='"a"'), rest()],
    "a file of another day": [cut(CHANGED, Last_Modified=MONDAY), rest(Last_Modified=TUESDAY)],
    "a file of another length": [cut(zip_of(b"1" * 9000)), rest()],
    "a file that changed and nothing shows it": [cut(CHANGED), rest()],
    "a file that became shorter": [cut(), (416, {"Content-Range": "bytes */900"}, b"")],
    "an empty answer without a length": [(200, {}, b"")],
    "no content": [(204, {}, b"")],
    "a busy server": [(503, {}, b"")],
    "a length that is no number": [(200, {"Content-Length": "abc"}, b"")],
}


@pytest.mark.parametrize("case", RETRIED)
def test_what_is_not_whole_is_fetched_again(case, scripted, tmp_path):
    url, _ = scripted(*RETRIED[case], whole())
    if "ended properly" in case:
        # The server says that this is all of it, so trying again is no use.
        with pytest.raises(ValueError, match=r"data\.zip: not a zip or tar archive, or cut off"):
            get(url, tmp_path / "data.zip")
        assert not list(tmp_path.iterdir())
    assert get(url, tmp_path / "data.zip").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["data.zip"]


# Cases in which only what is inside the archive shows that something is wrong.
SILENT = (
    *("chunks of half a file, ended properly", "a range that begins elsewhere than it says"),
    *("a file that changed and nothing shows it", "cut without a length", "an empty answer without a length"),
    "a length that is no number",
)


@pytest.mark.parametrize("case", [case for case in RETRIED if case not in SILENT])
def test_two_files_are_not_joined_where_no_archive_would_show_it(case, scripted, tmp_path):
    url, _ = scripted(*RETRIED[case], whole())
    assert get(url, tmp_path / "data.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("case", [case for case in RETRIED if "ended properly" not in case])
def test_what_is_never_whole_is_never_accepted(case, scripted, tmp_path):
    url, _ = scripted(*RETRIED[case], RETRIED[case][-1])
    with pytest.raises((OSError, ValueError), match=r"data\.zip: "):
        get(url, tmp_path / "data.zip", retries=2)
    assert not (tmp_path / "data.zip").exists()


@pytest.mark.parametrize(
    ("case", "answer"),
    {
        "a page": whole(PAGE, Content_Type="text/html; charset=utf-8"),
        "a page that says it is a zip": whole(PAGE, Content_Type="application/zip"),
        "half an archive of the announced length": whole(CONTENT[:-30]),
        "text": whole(b"quota exceeded"),
        "nothing": whole(b""),
        "a damaged archive": whole(CONTENT[:500] + b"?" + CONTENT[501:]),
    }.items(),
)
def test_what_is_no_archive_is_refused_at_once(case, answer, scripted, tmp_path):
    url, requests = scripted(answer)
    with pytest.raises(ValueError, match=r"data\.zip: .*found|data\.zip: .*damaged") as error:
        get(url, tmp_path / "data.zip")
    assert len(requests) == 1 and "\n" not in str(error.value)
    assert ("HTML page" in str(error.value)) == ("page" in case)
    assert not list(tmp_path.iterdir())


def test_a_page_does_not_replace_what_is_there_of_a_file(scripted, tmp_path):
    url, requests = scripted(cut(), whole(PAGE, Content_Type="text/html"), rest())
    with pytest.raises(ValueError, match="HTML page"):
        get(url, tmp_path / "data.zip")
    assert get(url, tmp_path / "data.zip").read_bytes() == CONTENT
    assert requests[2] == {"Range": "bytes=1000-"}


def test_a_later_call_asks_for_the_rest_of_the_same_file_only(scripted, tmp_path):
    url, requests = scripted(cut(ETag='"a"', Last_Modified=MONDAY), rest(ETag='"a"'))
    with pytest.raises(OSError, match="the same command continues"):
        get(url, tmp_path / "data.zip", retries=0)
    assert get(url, tmp_path / "data.zip").read_bytes() == CONTENT
    assert requests[1] == {"Range": "bytes=1000-", "If-Range": '"a"'}
    weak, requests = scripted(cut(ETag='W/"a"', Last_Modified=MONDAY), rest(ETag='W/"a"', Last_Modified=MONDAY))
    assert get(weak, tmp_path / "weak.zip").read_bytes() == CONTENT
    assert requests[1] == {"Range": "bytes=1000-", "If-Range": MONDAY}


def test_the_part_of_another_address_is_not_continued(scripted, tmp_path):
    first, _ = scripted(cut(CHANGED))
    with pytest.raises(OSError, match="ended after 1000 of"):
        get(first, tmp_path / "data.zip", retries=0)
    second, requests = scripted(whole())
    assert get(second, tmp_path / "data.zip").read_bytes() == CONTENT
    assert requests == [{}]


def test_a_file_that_can_be_checked_by_nothing_needs_a_length(scripted, tmp_path):
    url, _ = scripted((200, {}, b"weights"))
    with pytest.raises(OSError, match="announced no length"):
        get(url, tmp_path / "data.bin", retries=0)
    (tmp_path / "right").write_bytes(b"weights")
    checksum = archives.md5(tmp_path / "right")
    assert get(url, tmp_path / "data.bin", checksum=checksum).read_bytes() == b"weights"
    ended, _ = scripted(chunked(b"weights", end=True))
    assert get(ended, tmp_path / "chunks.bin").read_bytes() == b"weights"


def silent(stream):
    time.sleep(3)


def dripping(stream):
    for _ in range(30):
        stream.write(b"P")
        time.sleep(0.1)


@pytest.mark.parametrize("body", [silent, dripping])
def test_a_server_that_sends_next_to_nothing_does_not_hold_the_download(body, scripted, tmp_path):
    url, _ = scripted((200, {"Content-Length": "10000"}, body))
    begin = time.monotonic()
    with pytest.raises(OSError, match=r"data\.zip: cannot be downloaded \(.*(timed out|seconds)"):
        get(url, tmp_path / "data.zip", retries=0, timeout=0.3)
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize("there", [b"half", PAGE, CONTENT[:-30], CHANGED])
def test_a_file_that_is_there_and_not_right_is_said_and_fetched_again(there, scripted, tmp_path, capsys):
    url, requests = scripted(whole())
    file = tmp_path / "data.zip"
    file.write_bytes(CONTENT)
    checksum = archives.md5(file) if there == CHANGED else None
    get(url, file, checksum=checksum)
    assert not requests and not capsys.readouterr().out
    file.write_bytes(there)
    assert get(url, file, checksum=checksum).read_bytes() == CONTENT
    assert f"{file}: " in (said := capsys.readouterr().out) and "fetching it again" in said and len(requests) == 1


def test_a_file_that_is_there_stays_until_a_better_one_has_come(scripted, tmp_path):
    url, _ = scripted((404, {}, b""))
    (tmp_path / "data.zip").write_bytes(b"half")
    with pytest.raises(OSError, match="404"):
        get(url, tmp_path / "data.zip")
    assert (tmp_path / "data.zip").read_bytes() == b"half"


def test_both_kinds_of_published_checksums(scripted, tmp_path):
    url, _ = scripted(whole())
    right = {"md5": hashlib.md5(CONTENT).hexdigest(), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    for kind, checksum in right.items():
        assert get(url, tmp_path / f"{kind}.zip", checksum=checksum.upper()).read_bytes() == CONTENT
        with pytest.raises(ValueError, match=f"expected {checksum[::-1]}"):
            get(url, tmp_path / f"{kind}-wrong.zip", checksum=checksum[::-1])


@pytest.mark.parametrize(
    "error", [ssl.SSLEOFError(8, "EOF occurred"), ConnectionResetError(104, "reset"), http.client.BadStatusLine("?")]
)
def test_a_connection_that_breaks_in_any_way_is_tried_again(error, monkeypatch, scripted, tmp_path):
    url, requests = scripted(whole(), rest())
    real = archives._chunks

    def broken(response, *arguments):
        monkeypatch.setattr(archives, "_chunks", real)
        yield response.read(1000)
        raise error

    monkeypatch.setattr(archives, "_chunks", broken)
    assert get(url, tmp_path / "data.zip").read_bytes() == CONTENT
    assert requests[1] == {"Range": "bytes=1000-"}


def test_a_disk_that_becomes_full_is_named(monkeypatch, scripted, tmp_path):
    url, _ = scripted(whole())

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    monkeypatch.setattr(archives, "_chunks", full)
    with pytest.raises(OSError, match=r"data\.zip\.part: the disk is full \(.*free some space"):
        get(url, tmp_path / "data.zip")


# ---------------------------------------------------------------- archives


def make_zip(file: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def extract(archive, folder, limit=10**6, **options):
    return archives.extract(archive, folder, limit, progress=False, **options)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_files_are_written_and_those_that_are_there_stay(kind, tmp_path):
    members = {"set/images/a.png": b"aaaa", "set/labels/a.png": b"bb", "readme.txt": b"c"}
    archive = tmp_path / f"data.{kind}"
    if kind == "zip":
        make_zip(archive, members)
    else:
        with tarfile.open(archive, "w:gz") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    files = extract(archive, tmp_path / "out", inside="set/")
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in files) == ["images/a.png", "labels/a.png"]
    assert (tmp_path / "out/images/a.png").read_bytes() == b"aaaa"
    kept = (tmp_path / "out/images/a.png").stat().st_mtime_ns
    (tmp_path / "out/labels/a.png").write_bytes(b"")
    extract(archive, tmp_path / "out", inside="set/")
    assert (tmp_path / "out/images/a.png").stat().st_mtime_ns == kept
    assert (tmp_path / "out/labels/a.png").read_bytes() == b"bb"


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:/evil"])
def test_names_that_lead_out_of_the_folder_are_refused(name, tmp_path):
    archive = make_zip(tmp_path / "data.zip", {"good": b"1", name: b"2"})
    with pytest.raises(ValueError, match="leads out of the folder"):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "evil").exists()


def test_links_are_refused(tmp_path):
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    for name in ("data.tar", "data.zip"):
        with pytest.raises(ValueError, match="link is a link"):
            extract(tmp_path / name, tmp_path / "out")


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    archive = make_zip(tmp_path / "data.zip", {"zeros": bytes(5000)})
    assert archive.stat().st_size < 1000
    with pytest.raises(ValueError, match="expected at most"):
        extract(archive, tmp_path / "out", limit=4000)


def test_damage_and_other_files_are_named(tmp_path):
    archive = make_zip(tmp_path / "data.zip", {"a": bytes(range(256)) * 2})
    broken = bytearray(archive.read_bytes())
    broken[100] ^= 0xFF
    archive.write_bytes(broken)
    with pytest.raises(ValueError, match=r"data\.zip: a is damaged"):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out" / "a").exists()
    (tmp_path / "text.zip").write_text("an error page")
    with pytest.raises(ValueError, match="not a zip or tar archive"):
        extract(tmp_path / "text.zip", tmp_path / "out")


def make_tar(file: Path, members: dict[str, bytes], mode="w:gz") -> Path:
    with tarfile.open(file, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def patch(file: Path, old: bytes, new: bytes) -> Path:
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new))
    return file


def with_method(file: Path, method: int, flags: int = 0) -> Path:
    """A zip whose headers say another method and other flags."""
    make_zip(file, {"a.png": b"1"})
    new = struct.pack("<HH", flags, method)
    patch(file, b"PK\x03\x04\x14\x00" + struct.pack("<HH", 0, 8), b"PK\x03\x04\x14\x00" + new)
    return patch(file, b"PK\x01\x02\x14\x03\x14\x00" + struct.pack("<HH", 0, 8), b"PK\x01\x02\x14\x03\x14\x00" + new)


def with_size(file: Path, size: int) -> Path:
    """A zip whose list says another size of its only file."""
    content = bytearray(make_zip(file, {"a.png": b"1" * 100}).read_bytes())
    struct.pack_into("<L", content, content.index(b"PK\x01\x02") + 24, size)
    file.write_bytes(content)
    return file


def shortened(file: Path, by: int) -> Path:
    file.write_bytes(file.read_bytes()[:-by])
    return file


def flipped(file: Path, at: int) -> Path:
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(content)
    return file


def damaged_stream(file: Path) -> Path:
    """A zip of LZMA or a tar of xz or bzip2, with damage in the middle."""
    noise = random.Random(0).randbytes(3000)
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("a.png", bytes(3000) + noise)
    else:
        make_tar(file, {"a.png": bytes(3000) + noise}, f"w:{file.suffix[1:]}")
    return flipped(file, file.stat().st_size // 2)


def with_damaged_header(file: Path) -> Path:
    """The second header of a tar, where `tarfile` stops without a word."""
    make_tar(file, {"a.png": b"1" * 512, "b.png": b"2" * 512}, "w")
    return flipped(file, 1024 + 3)


NOISE = random.Random(1).randbytes(2000)
# How to make it, and what the message must say.
UNREADABLE = {
    "encrypted": (lambda folder: with_method(folder / "x.zip", 8, 1), "a.png encrypted with a password"),
    "strongly encrypted": (lambda folder: with_method(folder / "x.zip", 8, 0x41), "encrypted with a password"),
    "AES": (lambda folder: with_method(folder / "x.zip", 99, 1), "encrypted with AES"),
    "deflate64": (lambda folder: with_method(folder / "x.zip", 9), r"method 9 \(deflate64\), expected stored"),
    "zstandard": (lambda folder: with_method(folder / "x.zip", 93), r"method 93 \(zstandard\)"),
    "unknown method": (lambda folder: with_method(folder / "x.zip", 77), r"method 77 \(unknown\)"),
    "more bytes than listed": (lambda folder: with_size(folder / "x.zip", 99), "a.png is damaged"),
    "fewer bytes than listed": (lambda folder: with_size(folder / "x.zip", 101), "a.png does not have the 101 bytes"),
    "a newer format": (
        lambda folder: patch(make_zip(folder / "x.zip", {"a": b"1"}), b"\x02\x14\x03\x14", b"\x02\x14\x03\x63"),
        "download it again",
    ),
    "damaged LZMA": (lambda folder: damaged_stream(folder / "x.zip"), "a.png is damaged"),
    "damaged xz": (lambda folder: damaged_stream(folder / "x.tar.xz"), "damaged|found xz data of"),
    "damaged bzip2": (lambda folder: damaged_stream(folder / "x.tar.bz2"), "damaged|found bzip2 data of"),
    "truncated zip": (
        lambda folder: shortened(make_zip(folder / "x.zip", {"a": NOISE}), 40),
        "cut off: found a zip archive",
    ),
    "tar truncated in a file": (
        lambda folder: shortened(make_tar(folder / "x.tar", {"a": NOISE}, "w"), 9000),
        "damaged|cut off",
    ),
    "tar truncated between files": (
        lambda folder: shortened(make_tar(folder / "x.tar", {"a": b"1" * 512, "b": b"2" * 512}, "w"), 10240 - 1024),
        "cut off or damaged: found nothing at byte 1024",
    ),
    "tar with a damaged header": (lambda folder: with_damaged_header(folder / "x.tar"), "found something else"),
    "truncated tar.gz": (lambda folder: shortened(make_tar(folder / "x.tgz", {"a": NOISE}), 500), "damaged"),
    "tar.gz without its checksum": (lambda folder: shortened(make_tar(folder / "x.tgz", {"a": NOISE}), 8), "damaged"),
    "truncated tar.xz": (lambda folder: shortened(make_tar(folder / "x.txz", {"a": NOISE}, "w:xz"), 20), "damaged"),
    "gzip of something else": (
        lambda folder: (folder / "x.tgz").write_bytes(gzip.compress(b"text")) and folder / "x.tgz",
        "found gzip data of",
    ),
    "a page": (lambda folder: (folder / "x.zip").write_bytes(PAGE) and folder / "x.zip", "found an HTML page"),
    "an empty file": (lambda folder: (folder / "x.zip").touch() or folder / "x.zip", "found an empty file"),
    "no files": (lambda folder: make_zip(folder / "x.zip", {}), "found no files, expected some"),
    "a name that is not UTF-8": (
        lambda folder: patch(make_zip(folder / "x.zip", {"é": b"1"}), "é".encode(), b"\xff\xfe"),
        "download it again",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_one_message(case, tmp_path):
    make, message = UNREADABLE[case]
    archive = make(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        extract(archive, tmp_path / "out")
    text = str(error.value)
    assert text.startswith(f"{archive}: ") and "\n" not in text
    assert any(advice in text for advice in ("download", "unpack", "right file"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in (archive.name, ".lock")]
    if case != "no files":
        with pytest.raises(ValueError, match=message):
            archives.verify(archive)


def test_damage_that_only_the_checksum_at_the_end_shows_is_found_before_anything_is_written(tmp_path):
    # Stored blocks of gzip, so that the changed byte unpacks without an error.
    buffer = io.BytesIO()
    make_tar(tmp_path / "plain.tar", {"a.png": NOISE}, "w")
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=0) as stream:
        stream.write((tmp_path / "plain.tar").read_bytes())
    archive = tmp_path / "data.tar.gz"
    archive.write_bytes(buffer.getvalue())
    good = archive.read_bytes()
    flipped(archive, good.index(NOISE) + 100)
    with pytest.raises(ValueError, match=r"data\.tar\.gz: its end is damaged \(CRC check failed.*download"):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="CRC check failed"):
        archives.verify(archive)
    archive.write_bytes(good)
    assert extract(archive, tmp_path / "out")[0].read_bytes() == NOISE


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize(
    ("name", "message"),
    {
        ".": "found a file with the name '.'",
        "./.": "found a file with the name '.'",
        "": "found a file with the name ''",
        "..": "leads out",
        "a/..": "leads out",
        "./../a": "leads out",
        "/a": "leads out",
        "\\..\\a": "leads out",
    }.items(),
)
def test_members_without_a_name_are_refused(kind, name, message, tmp_path):
    archive = tmp_path / f"x.{kind}"
    if kind == "zip":
        # The standard library writes no empty name.
        make_zip(archive, {"good": b"1", name or "?": b"2"})
        content = archive.read_bytes()
        if not name:
            for header, length in ((b"PK\x03\x04", 26), (b"PK\x01\x02", 28)):
                at = content.rindex(header)
                name_at = content.index(b"?", at)
                content = (
                    content[: at + length] + bytes(2) + content[at + length + 2 : name_at] + content[name_at + 1 :]
                )
            end = content.rindex(b"PK\x05\x06")
            size, offset = struct.unpack("<LL", content[end + 12 : end + 20])
            content = content[: end + 12] + struct.pack("<LL", size - 1, offset - 1) + content[end + 20 :]
        archive.write_bytes(content)
    else:
        info = tarfile.TarInfo(name)
        header = info.tobuf(tarfile.GNU_FORMAT)
        archive.write_bytes(gzip.compress(header + bytes(1024)))
    with pytest.raises(ValueError, match=re.escape(message)):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_of_other_programs_are_the_same_names(tmp_path):
    make_zip(tmp_path / "windows.zip", {"set\\images\\a.png": b"1"})
    make_tar(tmp_path / "dot.tar.gz", {"./set/images/a.png": b"1"})
    for name in ("windows.zip", "dot.tar.gz"):
        (file,) = extract(tmp_path / name, tmp_path / name.split(".")[0], inside="set/")
        assert file == tmp_path / name.split(".")[0] / "images" / "a.png" and file.read_bytes() == b"1"


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    archive = make_tar(tmp_path / "x.tar", {"a.zip": CONTENT}, "w")
    (file,) = extract(archive, tmp_path / "out")
    assert file.name == "a.zip" and file.read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_file_of_the_right_size_and_other_content_is_written_again(kind, tmp_path):
    archive = (make_zip if kind == "zip" else make_tar)(tmp_path / f"x.{kind}", {"a": b"right"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_bytes(b"wrong")
    assert extract(archive, tmp_path / "out")[0].read_bytes() == b"right"


def test_of_two_files_with_one_name_the_later_counts_every_time(tmp_path):
    archive = make_tar(tmp_path / "x.tar", {"a": b"1", "./a": b"2"}, "w")
    for _ in range(2):
        (file,) = extract(archive, tmp_path / "out")
        assert file.read_bytes() == b"2"


def test_a_file_never_replaces_a_folder(tmp_path):
    make_zip(tmp_path / "x.zip", {"images": b"1"})
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "mine.png").write_bytes(b"1")
    with pytest.raises(ValueError, match="found a folder"):
        extract(tmp_path / "x.zip", tmp_path / "out")
    assert (tmp_path / "out" / "images" / "mine.png").exists()
    make_zip(tmp_path / "y.zip", {"a/b": b"1", "a": b"2"})
    with pytest.raises(ValueError, match="a is a file and the folder of a/b"):
        extract(tmp_path / "y.zip", tmp_path / "other")


def test_what_a_killed_extraction_has_left_is_cleared(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"set/a.png": b"1"})
    left = tmp_path / "out" / "set" / ".1234abcd.partial"
    left.mkdir(parents=True)
    (left / "a.png").write_bytes(b"hal")
    extract(archive, tmp_path / "out")
    assert not left.exists() and (tmp_path / "out" / "set" / "a.png").read_bytes() == b"1"


@pytest.mark.parametrize("name", ["two\nlines/../../a", "\x1b[2J/../../a", "\u2028/../../a"])
def test_a_name_cannot_write_on_the_terminal(name, tmp_path):
    with pytest.raises(ValueError, match="leads out") as error:
        extract(make_zip(tmp_path / "x.zip", {name: b"1"}), tmp_path / "out")
    assert str(error.value).isprintable()


def test_nothing_below_the_folder_that_counts_is_said(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"other/a.png": b"1"})
    with pytest.raises(ValueError, match="found no files below set/"):
        extract(archive, tmp_path / "out", inside="set/")


def test_a_disk_that_becomes_full_during_extraction_is_named(monkeypatch, tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"a.png": b"1"})

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    monkeypatch.setattr(archives, "_content", full)
    with pytest.raises(OSError, match=r"a\.png: the disk is full \("):
        extract(archive, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if path.name != ".lock"]


@pytest.mark.parametrize("kind", ["zip", "lzma.zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_random_damage_is_one_message_or_changes_nothing(kind, tmp_path):
    """A plain tar has no checksum of its contents; of all others no damaged byte may come through."""
    members = {"set/a.png": bytes(600) + NOISE[:300], "set/b.png": b"label" * 50}
    source = tmp_path / f"good.{kind}"
    if kind.endswith("zip"):
        method = zipfile.ZIP_LZMA if kind == "lzma.zip" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(source, "w", method) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        make_tar(source, members, f"w:{kind.partition('.')[2]}")
    good, chance = source.read_bytes(), random.Random(2)
    errors = []
    for i in range(60):
        content = bytearray(good)
        if i % 3:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        else:
            del content[chance.randrange(len(content)) :]
        (tmp_path / f"x{i}").write_bytes(content)
        try:
            files = extract(tmp_path / f"x{i}", tmp_path / "out" / str(i), limit=10**5)
        except ValueError as error:
            errors.append(str(error))
            continue
        found = {path.read_bytes() for path in files}
        if i % 3 == 0:
            # Cut off in the zeros behind the end, where nothing is missing.
            assert found == set(members.values())
        elif kind != "tar":
            # No checksum covers the list of a zip, so that a file may get another name.
            assert found <= set(members.values())
    assert len(errors) > 5
    assert all(error.startswith(f"{tmp_path}") and "\n" not in error for error in errors)
    assert {path.name for path in tmp_path.iterdir()} <= {source.name, "out", *(f"x{i}" for i in range(60))}
