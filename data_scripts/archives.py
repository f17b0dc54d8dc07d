"""Downloads that are complete or refused, and archives that cannot write outside their folder.

A download goes to `FILE.part` and gets its name once it is known to be complete: its length is what the server
announced, its checksum is the published one, and an archive can be read to its end. `FILE.part.json` keeps what the
server said about the file, so that a later call never joins two different files. Every file of an archive is written to
a temporary name first, so that a killed extraction can be started again and does what is missing.
"""

import errno
import hashlib
import http.client
import lzma
import re
import ssl
import stat
import struct
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tqdm.auto import tqdm

from zodi.support.files import atomic_path, check_disk, disk_full_named, held, one_line, read_json, write_json

CHUNK = 1 << 20
WAIT_SECONDS = 2.0
TIMEOUT_SECONDS = 60.0
# Bytes that must arrive within TIMEOUT_SECONDS; fewer count as none.
LEAST_PROGRESS = 1024
BROKEN_CONNECTION = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)

# ---------------------------------------------------------------- download


def md5(file: str | Path) -> str:
    """MD5 of a file, hexadecimal: it reveals damage, not malice."""
    return _digest(Path(file), "md5")


def download(
    url: str,
    file: str | Path,
    checksum: str | None = None,
    retries: int = 5,
    progress: bool = True,
    wait: float = WAIT_SECONDS,
    timeout: float = TIMEOUT_SECONDS,
) -> Path:
    """Download a file; continues where an earlier call stopped, and does nothing when the right file is there.

    A file does not count as complete just because the connection ended. The length must be the announced one, the
    checksum the published one, and a file named like an archive must be readable to its end. An existing file is
    checked in the same way; if it fails, that is printed and it is fetched again.

    Args:
        url: http, https or file address.
        file: where it goes; an incomplete download is kept beside it as `FILE.part`.
        checksum: MD5 or SHA-256 that it must have, hexadecimal; None = unknown.
        retries: how often to retry a broken connection.
        progress: show a progress bar.
        wait: seconds before the first retry; doubled every time.
        timeout: seconds in which something must arrive.

    Returns:
        `file`.

    Raises:
        OSError: if it cannot be fetched, or the disk is too small; says what to do.
        ValueError: if the server has something other than the file: a page in its place, a wrong checksum, an archive
            that does not open. The incomplete download is deleted.
    """
    file = Path(file)
    if file.exists():
        problem = problem_of(file, file.name, checksum)
        if problem is None:
            return file
        print(f"{file}: {problem}; fetching it again", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    for attempt in range(retries + 1):
        try:
            _receive(url, part, file.name, checksum, progress, timeout)
            break
        except BROKEN_CONNECTION as error:
            # An answer such as "not found" stays the same however often we ask.
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if refused or attempt == retries:
                kept = f"What has arrived is kept in {part}; the same command continues." if part.exists() else ""
                raise OSError(
                    f"{url}: cannot be downloaded ({one_line(error)}). {kept or 'Try again later.'} "
                    f"Or get the file elsewhere and put it at {file}."
                ) from error
            time.sleep(wait * 2**attempt)
    part.replace(file)
    _state_file(part).unlink(missing_ok=True)
    return file


def _receive(url: str, part: Path, name: str, checksum: str | None, progress: bool, timeout: float) -> None:
    """One try, after which `part` is complete and correct.

    Raises:
        OSError: if the connection failed; an error after which `download` tries again.
        ValueError: if the server's own file is wrong.
    """
    resumed, end_known = _append(url, part, name, progress, timeout)
    problem = problem_of(part, name, checksum)
    if problem is None and not end_known and checksum is None and not _is_archive_name(name):
        problem = "the server announced no length, so a connection that was cut looks like the end"
    if problem is None:
        return
    _forget(part)
    if resumed or not end_known:
        # Pieces of two files, or a connection that was cut: another try may succeed.
        raise ConnectionError(problem)
    raise ValueError(f"{url}: {problem}; the file was deleted, download it again")


def _append(url: str, part: Path, name: str, progress: bool, timeout: float) -> tuple[bool, bool]:
    """Append to `part` what is missing; (was there a beginning, is the end known to be the end)."""
    known = _read_state(part, url)
    done = part.stat().st_size if known and part.exists() else 0
    if done and done == known["total"]:
        # The last call was stopped between the last byte and the new name.
        return True, True
    with _answer(url, part, known, done, timeout) as response:
        kind = response.headers.get_content_type()
        if kind in ("text/html", "application/xhtml+xml") and not _is_page_name(name):
            raise ValueError(
                f"{url}: found an HTML page ({kind}), expected the file {name}; open the address in a browser, "
                "it may ask for something first"
            )
        state = {"url": url, "etag": response.headers.get("ETag"), "modified": response.headers.get("Last-Modified")}
        if response.status == 206:
            start, state["total"] = _range(response.headers.get("Content-Range"))
            if start != done or not _same_file(known, state):
                _forget(part)
                raise ConnectionError("the server sent another part, or its file has changed; starting again")
        elif response.status in (200, None):
            # The first answer, or the file has changed, or the server cannot start in the middle.
            done = 0
            state["total"] = _length(response.headers.get("Content-Length"))
        else:
            raise ConnectionError(f"the server answered {response.status}, expected 200 or 206")
        total = state["total"]
        check_disk(part.parent, (total or 0) - done)
        if not done:
            part.unlink(missing_ok=True)
            write_json(_state_file(part), state)
        with disk_full_named(part), part.open("ab" if done else "wb") as stream:
            for chunk in _chunks(response, done, total, progress, timeout):
                stream.write(chunk)
    size = part.stat().st_size
    if total is not None and size != total:
        raise ConnectionError(f"connection ended after {size} of {total} bytes")
    # The last chunk of a chunked response says that it is the last.
    return done > 0, total is not None or bool(getattr(response, "chunked", False))


def _answer(url: str, part: Path, known: dict, done: int, timeout: float) -> http.client.HTTPResponse:
    """The server's response to a request for everything, or for the bytes of the `known` file after `done`."""
    headers = {}
    if done:
        headers["Range"] = f"bytes={done}-"
        # Weak tags may be the same for different bytes, and servers refuse them here.
        strong = known["etag"] if known["etag"] and not known["etag"].startswith("W/") else None
        if strong or known["modified"]:
            headers["If-Range"] = strong or known["modified"]
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and done:
            _forget(part)
            raise ConnectionError("the server's file has become shorter; starting again") from error
        raise


def _chunks(
    response: http.client.HTTPResponse, done: int, total: int | None, progress: bool, timeout: float
) -> Iterator[bytes]:
    """What arrives, as it arrives, so that what came before an interruption is kept.

    Raises:
        TimeoutError: if next to nothing arrives for `timeout` seconds.
    """
    with tqdm(total=total, initial=done, unit="B", unit_scale=True, disable=not progress) as bar:
        begin, received = time.monotonic(), 0
        while (total is None or done < total) and (chunk := response.read1(CHUNK)):
            yield chunk
            bar.update(len(chunk))
            done, received = done + len(chunk), received + len(chunk)
            if time.monotonic() - begin > timeout:
                if received < LEAST_PROGRESS:
                    raise TimeoutError(f"only {received} bytes in {timeout:g} seconds")
                begin, received = time.monotonic(), 0


def _range(text: str | None) -> tuple[int | None, int | None]:
    """(first byte, length of the whole file) of a Content-Range; (None, None) if it says neither."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", (text or "").strip())
    return (int(found[1]), int(found[2])) if found else (None, None)


def _same_file(known: dict, state: dict) -> bool:
    """Whether a response belongs to the same file as earlier ones. What was not said before cannot differ."""
    # With a tag that is the same, servers may leave the date out.
    keys = ["etag", "total"] if known.get("etag") and state["modified"] is None else ["etag", "modified", "total"]
    return all(known.get(key) in (None, state[key]) for key in keys)


def _length(text: str | None) -> int | None:
    return int(text) if text and text.strip().isdecimal() else None


def _state_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_state(part: Path, url: str) -> dict:
    """What the server said about the file when `part` was started; empty if unknown."""
    try:
        state = read_json(_state_file(part))
    except (OSError, ValueError):
        return {}
    keys = {"url", "etag", "modified", "total"}
    return state if isinstance(state, dict) and set(state) == keys and state["url"] == url else {}


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state_file(part).unlink(missing_ok=True)


def problem_of(file: Path, name: str, checksum: str | None) -> str | None:
    """Why `file` cannot be the complete file called `name`, in words; None if nothing contradicts it."""
    if checksum:
        algorithm = "sha256" if len(checksum) == 64 else "md5"
        found = _digest(file, algorithm)
        shown = "SHA-256" if algorithm == "sha256" else "MD5"
        return None if found == checksum.lower() else f"found {shown} {found}, expected {checksum}"
    if _is_archive_name(name):
        try:
            verify(file)
        except ValueError as error:
            # Its end says what to do, which is different here.
            return str(error).removeprefix(f"{file}: ").rpartition("; ")[0]
    elif _looks_like(file) == "an HTML page" and not _is_page_name(name):
        return f"found an HTML page, expected the file {name}"
    return None


def _digest(file: Path, algorithm: str) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def _is_archive_name(name: str) -> bool:
    return re.search(r"\.(zip|tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz))$", name.lower()) is not None


def _is_page_name(name: str) -> bool:
    return name.lower().endswith((".html", ".htm", ".xhtml"))


# ---------------------------------------------------------------- reading an archive

METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
METHOD_NAMES = {1: "shrink", 6: "implode", 9: "deflate64", 93: "zstandard", 95: "xz", 98: "ppmd"}
AES = 99
BLOCK = 512

# What the readers of the standard library raise for bytes that are wrong.
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    LookupError,
)


@dataclass(frozen=True)
class _Member:
    """An entry of an archive that is not a folder; one that is not a file either is a link or a device."""

    name: str
    size: int
    is_file: bool
    entry: zipfile.ZipInfo | tarfile.TarInfo


def verify(archive: str | Path) -> None:
    """Read an archive to its very end and compare all the checksums that it holds.

    Raises:
        ValueError: if it is not an archive, is cut off or damaged, or holds something unreadable.
    """
    archive = Path(archive)
    with _open_archive(archive) as opened:
        for member in _members(archive, opened):
            if isinstance(opened, zipfile.ZipFile):
                for _ in _content(archive, opened, member):
                    pass


def _open_archive(archive: Path) -> zipfile.ZipFile | tarfile.TarFile:
    kind = _looks_like(archive)
    try:
        # A tar may end with a zip, so the beginning decides if it says anything.
        if kind == "a zip archive" or (kind == "something else" and zipfile.is_zipfile(archive)):
            return zipfile.ZipFile(archive)
        return tarfile.open(archive)
    except (OSError, *DAMAGE) as error:
        if _is_of_the_system(error):
            raise
        raise ValueError(
            f"{archive}: not a zip or tar archive, or cut off: found {kind} of {archive.stat().st_size} bytes; "
            "download it again"
        ) from error


def _is_of_the_system(error: Exception) -> bool:
    """A failing disk, for example; errors of gzip and bzip2 have no number, and damage may lead to before byte 0."""
    return getattr(error, "errno", None) not in (None, errno.EINVAL)


def _looks_like(file: Path) -> str:
    """What the first bytes say."""
    with file.open("rb") as stream:
        head = stream.read(BLOCK)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "a zip archive"
    if head[257:262] == b"ustar":
        return "a tar archive"
    for magic, kind in ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz")):
        if head.startswith(magic):
            return f"{kind} data"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or (text[:1] == b"<" and b"<html" in text):
        return "an HTML page"
    return "something else" if head else "an empty file"


def _members(archive: Path, opened: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Member]:
    """All but folders, which are made when a file needs them; a tar is read to its very end."""
    if isinstance(opened, zipfile.ZipFile):
        for info in opened.infolist():
            if not info.filename.endswith("/"):
                _check_readable(archive, info)
                kind = stat.S_IFMT(info.external_attr >> 16)
                yield _Member(_plain(info.filename), info.file_size, kind in (0, stat.S_IFREG), info)
    else:
        for entry in _entries(archive, opened):
            if not entry.isdir():
                yield _Member(_plain(entry.name), entry.size, entry.isreg(), entry)


def _plain(name: str) -> str:
    """Programs on Windows write backslashes, `tar .` writes "./" before all names. An absolute name stays absolute."""
    return str(PurePosixPath(name.replace("\\", "/"))) if name else ""


def _shown(name: str) -> str:
    """A name for messages: what moves the cursor or breaks the line is written as an escape."""
    return name if name.isprintable() else ascii(name)[1:-1]


def _check_readable(archive: Path, info: zipfile.ZipInfo) -> None:
    if info.flag_bits & 0x41 or info.compress_type == AES:
        method = "AES" if info.compress_type == AES else "a password"
        raise ValueError(
            f"{archive}: found {_shown(info.filename)} encrypted with {method}, expected it unencrypted; "
            "unpack it with a program that asks for the password, or get the official archive"
        )
    if info.compress_type not in METHODS:
        name = METHOD_NAMES.get(info.compress_type, "unknown")
        raise ValueError(
            f"{archive}: found {_shown(info.filename)} compressed with method {info.compress_type} ({name}), "
            "expected stored, deflate, bzip2 or lzma; unpack it with another program, or pack it again"
        )


def _entries(archive: Path, opened: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Entries of a tar.

    `tarfile` takes an unreadable header for the end, and nothing reads the checksum after the end of compressed data.
    So the end must be the block of zeros that marks it, and what comes after it is read too.
    """
    with _damage_named(archive, "its list"):
        yield from opened
        opened.fileobj.seek(opened.offset)
        mark = opened.fileobj.read(BLOCK)
    if mark != bytes(BLOCK):
        raise ValueError(
            f"{archive}: cut off or damaged: found {'something else' if mark else 'nothing'} at byte {opened.offset} "
            "of the tar, expected the mark of its end; download the archive again"
        )
    with _damage_named(archive, "its end"):
        while opened.fileobj.read(CHUNK):
            pass


def _content(archive: Path, opened: zipfile.ZipFile | tarfile.TarFile, member: _Member) -> Iterator[bytes]:
    """The bytes of a member: exactly as many as the archive's list says, with the checksum given there."""
    left = member.size
    with _damage_named(archive, _shown(member.name)):
        stream: BinaryIO = (
            opened.open(member.entry) if isinstance(opened, zipfile.ZipFile) else opened.extractfile(member.entry)
        )
    with stream:
        while True:
            with _damage_named(archive, _shown(member.name)):
                chunk = stream.read(min(CHUNK, left + 1))
            left -= len(chunk)
            if not chunk or left < 0:
                break
            yield chunk
    if left:
        raise ValueError(
            f"{archive}: {_shown(member.name)} does not have the {member.size} bytes given in the archive's list; "
            "download the archive again"
        )


@contextmanager
def _damage_named(archive: Path, what: str) -> Iterator[None]:
    """Turn whatever the readers raise into one error that names the archive."""
    try:
        yield
    except (OSError, *DAMAGE) as error:
        if _is_of_the_system(error):
            raise
        raise ValueError(f"{archive}: {what} is damaged ({one_line(error)}); download the archive again") from error


# ---------------------------------------------------------------- extraction


def extract(archive: str | Path, folder: str | Path, limit: int, inside: str = "", progress: bool = True) -> list[Path]:
    """Extract a zip or tar archive; existing files with the right content are kept.

    Args:
        archive: the file.
        folder: where its files go.
        limit: bytes that its content may have, a guard against archives that unpack to far more than they should.
        inside: a folder of the archive that is treated as its root, with "/" at its end; files elsewhere are left out.
        progress: show a progress bar.

    Returns:
        The files.

    Raises:
        ValueError: if it is not an archive, encrypted, damaged, holds links or names that lead out of `folder`, more
            than `limit`, or nothing below `inside`. Only damage inside one file of a zip is found later; what was
            extracted before has been checked and is kept.
        OSError: if the disk is too small.
    """
    archive, folder = Path(archive), Path(folder)
    with _open_archive(archive) as opened:
        members = _checked_members(archive, opened, limit)
        members = {name: member for name, member in members.items() if name.startswith(inside)}
        if not members:
            raise ValueError(
                f"{archive}: found no files{f' below {inside}' if inside else ''}, expected some; is it the right file?"
            )
        targets = {name: folder / name.removeprefix(inside) for name in members}
        for target in targets.values():
            if target.is_dir():
                raise ValueError(f"{target}: found a folder, {archive.name} has a file with this name; move it away")
        todo = [name for name, member in members.items() if not _has_content(targets[name], archive, opened, member)]
        check_disk(folder, sum(members[name].size for name in todo))
        with held(folder):
            for name in tqdm(todo, archive.name, unit="file", disable=not progress):
                with (
                    disk_full_named(targets[name]),
                    atomic_path(targets[name]) as temporary,
                    temporary.open("wb") as out,
                ):
                    for chunk in _content(archive, opened, members[name]):
                        out.write(chunk)
    return list(targets.values())


def _checked_members(archive: Path, opened: zipfile.ZipFile | tarfile.TarFile, limit: int) -> dict[str, _Member]:
    """Members by name, if none of them can do harm; of two with the same name the later one counts, as everywhere."""
    members, total = {}, 0
    for member in _members(archive, opened):
        _check_member(archive, member)
        total += member.size
        if total > limit:
            raise ValueError(
                f"{archive}: unpacks to {total / 1e9:.2f} GB or more, expected at most {limit / 1e9:.2f} GB; "
                "is it the right file?"
            )
        members[member.name] = member
    for name in members:
        below = next((str(parent) for parent in PurePosixPath(name).parents if str(parent) in members), None)
        if below:
            raise ValueError(
                f"{archive}: {_shown(below)} is a file and the folder of {_shown(name)}; is it the right file?"
            )
    return members


def _check_member(archive: Path, member: _Member) -> None:
    name = PurePosixPath(member.name)
    if not member.is_file:
        raise ValueError(f"{archive}: {_shown(member.name)} is a link or device, which no data set needs")
    if name.is_absolute() or ".." in name.parts or ":" in (*name.parts, "")[0]:
        raise ValueError(
            f"{archive}: {_shown(member.name)} leads out of the folder; this archive is not what it should be"
        )
    if not name.parts or "\0" in member.name:
        raise ValueError(
            f"{archive}: found a file with the name {member.name!a}, expected the name of a file; "
            "this archive is not what it should be"
        )


def _has_content(file: Path, archive: Path, opened: zipfile.ZipFile | tarfile.TarFile, member: _Member) -> bool:
    """Whether the file is there as in the archive. The size alone would miss damage from an earlier extraction."""
    if not file.is_file() or file.stat().st_size != member.size:
        return False
    with file.open("rb") as stream:
        if isinstance(member.entry, zipfile.ZipInfo):
            crc = 0
            while chunk := stream.read(CHUNK):
                crc = zlib.crc32(chunk, crc)
            return crc == member.entry.CRC
        return all(stream.read(len(chunk)) == chunk for chunk in _content(archive, opened, member))
