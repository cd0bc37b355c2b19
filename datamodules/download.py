"""Download over an unreliable network and unpack archives safely."""

import hashlib
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from errors import UserError

CHUNK = 1 << 20  # bytes
ATTEMPTS = 5
"""Maximum number of attempts if the connection breaks."""
TIMEOUT = 30.0
"""Seconds without data until a connection counts as broken."""


def download(url: str, path: Path, digest: str) -> None:
    """Download a file, continuing where an earlier attempt or run broke off.

    The partial download is ``path`` + ``.part``; ``path`` appears once its checksum is verified.

    Args:
        url: URL of the file.
        path: target.
        digest: algorithm and hexadecimal checksum: ``md5:…`` or ``sha256:…``.

    Raises:
        UserError: if the server cannot be reached or refuses, or the checksum is wrong.
    """
    part = path.with_name(path.name + ".part")
    columns = (TextColumn(path.name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("download", total=None)
        for attempt in range(ATTEMPTS):
            try:
                _continue(url, part, progress, task)
                break
            except urllib.error.HTTPError as error:
                if error.code == 416:  # nothing is left to send: the part is complete or wrong
                    break
                raise UserError(f"{url} answered {error.code} {error.reason}") from error
            except (OSError, HTTPException) as error:
                if attempt == ATTEMPTS - 1:
                    reason = getattr(error, "reason", error)
                    raise UserError(f"{url} could not be downloaded ({reason})") from error
                time.sleep(min(2**attempt - 1, 10))
    try:
        check_digest(part, digest)
    except UserError as error:
        part.unlink()
        raise UserError(
            f"the file from {url} failed its checksum and was deleted: {error}"
        ) from error
    part.replace(path)


def _continue(url: str, part: Path, progress: Progress, task: TaskID) -> None:
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    response: HTTPResponse
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != 206:  # the server sends the whole file
            done = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        progress.update(task, completed=done, total=total)
        with part.open("ab" if done else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                progress.update(task, completed=done)
    if total is not None and done < total:
        raise ConnectionError(f"the connection broke at byte {done} of {total}")


def check_digest(path: Path, digest: str) -> None:
    """Compare a file's checksum with the expected one, ``md5:…`` or ``sha256:…``.

    Raises:
        UserError: if the checksums differ.
    """
    algorithm, _, expected = digest.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        raise UserError(
            f"{path} has the {algorithm} {found} instead of {expected}: it was damaged in transit, "
            "or is not the official file"
        )


def unpack_folder(archive: Path, folder: str, target: Path) -> None:
    """Unpack one folder of a tar archive to ``target``, which appears only once it is complete.

    Args:
        archive: tar file, compressed or not.
        folder: name of the top-level folder in the archive that becomes ``target``.
        target: new folder; must not exist yet.

    Raises:
        UserError: if the archive is damaged, has no such folder, or could write elsewhere (absolute
            paths, ``..``, links or devices).
    """
    unpacking = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(unpacking, ignore_errors=True)  # left by a run that was killed
    unpacking.mkdir(parents=True)
    try:
        columns = (TextColumn(f"unpacking {archive.name}"), BarColumn(), DownloadColumn())
        with (
            Progress(*columns, TimeRemainingColumn()) as progress,
            progress.open(archive, "rb") as file,
            tarfile.open(fileobj=file, mode="r|*") as tar,
        ):
            tar.extractall(unpacking, filter="data")
        if not (unpacking / folder).is_dir():
            raise UserError(f"{archive} has no folder {folder}: it is not the official archive")
        (unpacking / folder).replace(target)
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{archive} could not be unpacked ({reason}): delete it and try again"
        ) from error
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)
