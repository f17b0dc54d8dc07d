"""Downloads from a server of our own that breaks off, and archives made to do harm."""

import functools
import http.server
import io
import stat
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from zodi import archives

CONTENT = bytes(range(256)) * 40


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
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
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
    with pytest.raises(OSError, match="the same command goes on"):
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
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    with pytest.raises(OSError, match="not enough disk space"):
        get(server[0], tmp_path / "data.zip")


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
