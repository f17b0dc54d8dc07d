"""Downloads that go on where they stopped, and archives that cannot write outside their folder.

A download goes to `FILE.part` and gets its name when size and checksum are right. Every file of an archive is written
to a temporary name first, so that a killed extraction can be started again and does what is missing.
"""

import hashlib
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tqdm.auto import tqdm

from zodi.runs import atomic_path

CHUNK = 1 << 20
WAIT_SECONDS = 2.0


def check_disk(folder: str | Path, needed: int) -> None:
    """Raises OSError, saying how much is missing, if `needed` bytes do not fit into `folder`."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder}: not enough disk space, {needed / 1e9:.2f} GB needed and {free / 1e9:.2f} GB free. "
            "Free some space or choose another folder."
        )


# ---------------------------------------------------------------- download


def md5(file: str | Path) -> str:
    """MD5 of a file, hexadecimal: it tells damage, not malice."""
    with Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def download(
    url: str,
    file: str | Path,
    checksum: str | None = None,
    retries: int = 5,
    progress: bool = True,
    wait: float = WAIT_SECONDS,
) -> Path:
    """Download a file; goes on where an earlier call stopped, and does nothing when the file is there.

    Args:
        url: http, https or file address.
        file: where it goes; a part is kept beside it as `FILE.part`.
        checksum: MD5 that it must have, hexadecimal; None = not known.
        retries: how often a broken connection is tried again.
        progress: show a bar.
        wait: seconds before the first new try; doubled every time.

    Returns:
        `file`.

    Raises:
        OSError: if it cannot be got, or the disk is too small; says what to do.
        ValueError: if the checksum is wrong; the part is deleted.
    """
    file = Path(file)
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    for attempt in range(retries + 1):
        try:
            _continue(url, part, progress)
            break
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            # An answer such as "not found" stays the same however often one asks.
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if refused or attempt == retries:
                raise OSError(
                    f"{url}: cannot be downloaded ({error}). What is there is kept in {part}; the same command goes "
                    f"on. Or get the file elsewhere and put it at {file}."
                ) from error
            time.sleep(wait * 2**attempt)
    found = md5(part) if checksum else None
    if found != checksum:
        part.unlink()
        raise ValueError(f"{url}: found MD5 {found}, expected {checksum}; the file was deleted, download it again")
    part.rename(file)
    return file


def _continue(url: str, part: Path, progress: bool) -> None:
    """Append to `part` what is missing."""
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and done:
            # Nothing is left: the last call was stopped between the last byte and the new name.
            return
        raise
    with response:
        if done and response.status != 206:
            # The server cannot start in the middle.
            done = 0
        length = int(response.headers.get("Content-Length") or 0)
        check_disk(part.parent, length)
        with (
            part.open("ab" if done else "wb") as stream,
            tqdm(total=done + length or None, initial=done, unit="B", unit_scale=True, disable=not progress) as bar,
        ):
            received = 0
            while chunk := response.read(CHUNK):
                stream.write(chunk)
                received += len(chunk)
                bar.update(len(chunk))
        if length and received < length:
            raise ConnectionError(f"connection ended after {received} of {length} bytes")


# ---------------------------------------------------------------- extraction


@dataclass(frozen=True)
class _Member:
    """An entry of an archive that is not a folder; what is no file either is a link or a device."""

    name: str
    size: int
    is_file: bool
    entry: object


def extract(archive: str | Path, folder: str | Path, limit: int, inside: str = "", progress: bool = True) -> list[Path]:
    """Extract a zip or tar archive; files that are there with the right size stay.

    Args:
        archive: the file.
        folder: where its files go.
        limit: bytes that all of it may have, against archives that unpack to far more than they should.
        inside: a folder of the archive that is taken for its root, with "/" at its end; files elsewhere are left out.
        progress: show a bar.

    Returns:
        The files.

    Raises:
        ValueError: if it is no archive, damaged, holds links or names that lead out of `folder`, or more than `limit`;
            nothing is extracted then.
        OSError: if the disk is too small.
    """
    archive, folder = Path(archive), Path(folder)
    with _open_archive(archive) as opened:
        members = list(_members(opened))
        for member in members:
            _check_member(archive, member)
        total = sum(member.size for member in members)
        if total > limit:
            raise ValueError(
                f"{archive}: unpacks to {total / 1e9:.2f} GB, expected at most {limit / 1e9:.2f} GB; "
                "is it the right file?"
            )
        members = [member for member in members if member.name.startswith(inside)]
        targets = {member.name: folder / member.name.removeprefix(inside) for member in members}
        todo = [m for m in members if not _has_size(targets[m.name], m.size)]
        folder.mkdir(parents=True, exist_ok=True)
        check_disk(folder, sum(member.size for member in todo))
        for member in tqdm(todo, archive.name, unit="file", disable=not progress):
            with atomic_path(targets[member.name]) as temporary:
                _write(opened, member, temporary, archive)
    return [targets[member.name] for member in members]


def _open_archive(archive: Path) -> zipfile.ZipFile | tarfile.TarFile:
    try:
        if zipfile.is_zipfile(archive):
            return zipfile.ZipFile(archive)
        return tarfile.open(archive)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{archive}: not a zip or tar archive, or cut off ({error}); download it again") from error


def _members(opened: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Member]:
    """All but folders, which are made when a file needs them."""
    if isinstance(opened, zipfile.ZipFile):
        for info in opened.infolist():
            if not info.is_dir():
                kind = stat.S_IFMT(info.external_attr >> 16)
                yield _Member(info.filename, info.file_size, kind in (0, stat.S_IFREG), info)
    else:
        for entry in opened:
            if not entry.isdir():
                yield _Member(entry.name, entry.size, entry.isreg(), entry)


def _check_member(archive: Path, member: _Member) -> None:
    name = PurePosixPath(member.name.replace("\\", "/"))
    if not member.is_file:
        raise ValueError(f"{archive}: {member.name} is a link or device, which data sets have no use for")
    if name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
        raise ValueError(f"{archive}: {member.name} leads out of the folder; this archive is not what it should be")


def _has_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _write(opened: zipfile.ZipFile | tarfile.TarFile, member: _Member, file: Path, archive: Path) -> None:
    """One file; at most as many bytes as the archive's list says."""
    stream: BinaryIO | None = (
        opened.open(member.entry) if isinstance(opened, zipfile.ZipFile) else opened.extractfile(member.entry)
    )
    left = member.size
    try:
        with stream, file.open("wb") as out:
            while chunk := stream.read(min(CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    break
                out.write(chunk)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise ValueError(f"{archive}: {member.name} is damaged ({error}); download the archive again") from error
    if left:
        raise ValueError(f"{archive}: {member.name} has not the {member.size} bytes that the archive's list says")
