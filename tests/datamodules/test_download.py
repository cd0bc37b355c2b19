import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from datamodules import OCTMNISTDataModule
from datamodules.download import download, unpack_folder
from datamodules.ljspeech import LJSpeechDataModule
from datamodules.medmnist import read_info
from errors import UserError
from tests.conftest import write_corpus


class Server:
    """A file server on the loopback address that breaks connections when asked to.

    Attributes:
        content: bytes to serve.
        break_after: bytes after which each of the next connections breaks.
        ranges: Range headers of the requests so far.
        status: status code to answer with instead; None serves the content.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.break_after: list[int] = []
        self.ranges: list[str | None] = []
        self.status: int | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers["Range"]
                server.ranges.append(asked)
                if server.status is not None:
                    self.send_error(server.status)
                    return
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
                if start >= len(server.content):
                    self.send_error(416)
                    return
                rest = server.content[start:]
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                self.wfile.write(rest[: server.break_after.pop(0)] if server.break_after else rest)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/archive.tar.bz2"
        Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def digest(self) -> str:
        return f"sha256:{self.sha256}"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], Server]]:
    monkeypatch.setattr("datamodules.download.time.sleep", lambda _: None)
    servers: list[Server] = []

    def start(content: bytes) -> Server:
        servers.append(Server(content))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def pack(folder: Path, *extra: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:bz2") as tar:
        tar.add(folder, "LJSpeech-1.1")
        for member in extra:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_missing_corpus_is_downloaded_checked_and_unpacked(
    serve: Callable[[bytes], Server], tmp_path: Path, own_tones: Path
) -> None:
    server = serve(pack(own_tones))
    root = tmp_path / "new" / "LJSpeech-1.1"
    data = LJSpeechDataModule(root=str(root), url=server.url, sha256=server.sha256)
    data.prepare_data()
    assert files_below(root) == files_below(own_tones)
    assert files_below(root.parent) == sorted(
        ["LJSpeech-1.1", *(f"LJSpeech-1.1/{name}" for name in files_below(own_tones))]
    )
    data.prepare_data()
    assert len(server.ranges) == 1  # once is enough


def test_a_missing_image_set_is_downloaded_and_checked(
    serve: Callable[[bytes], Server],
    tmp_path: Path,
    retinas: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = retinas.read_bytes()
    server = serve(content)
    server.break_after = [1000]
    monkeypatch.setitem(read_info()["octmnist"], "url", server.url)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(read_info()["octmnist"], "MD5", md5)
    data = OCTMNISTDataModule(root=str(tmp_path / "sets"))
    data.prepare_data()
    data.setup("fit")
    assert server.ranges == [None, "bytes=1000-"]
    assert len(data.datasets["train"]) == 200
    OCTMNISTDataModule(root=str(tmp_path / "sets")).prepare_data()
    assert len(server.ranges) == 2  # once is enough
    monkeypatch.setitem(read_info()["octmnist"], "MD5", "0" * 32)
    with pytest.raises(UserError, match=rf"md5 {md5} instead of 000.*--data.init_args.file"):
        OCTMNISTDataModule(root=str(tmp_path / "others")).prepare_data()
    assert files_below(tmp_path / "others") == []
    assert files_below(tmp_path / "sets") == ["octmnist.npz"]


def test_a_broken_download_continues_where_it_stopped_in_one_run_and_in_the_next(
    serve: Callable[[bytes], Server], tmp_path: Path
) -> None:
    content = bytes(range(256)) * 64
    server = serve(content)
    server.break_after = [1000, 500, 0, 0, 0]
    target = tmp_path / "file"
    with pytest.raises(UserError, match=r"could not be downloaded \(the connection broke at byte"):
        download(server.url, target, server.digest)
    assert server.ranges == [None, "bytes=1000-", "bytes=1500-", "bytes=1500-", "bytes=1500-"]
    assert not target.exists()
    download(server.url, target, server.digest)
    assert server.ranges[-1] == "bytes=1500-"
    assert target.read_bytes() == content
    assert files_below(tmp_path) == ["file"]


def test_a_whole_part_file_of_a_killed_run_is_used(
    serve: Callable[[bytes], Server], tmp_path: Path
) -> None:
    server = serve(b"content")
    (tmp_path / "file.part").write_bytes(b"content")
    download(server.url, tmp_path / "file", server.digest)
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_wrong_checksum_leaves_nothing(serve: Callable[[bytes], Server], tmp_path: Path) -> None:
    server = serve(b"not the archive")
    with pytest.raises(UserError, match=f"sha256 {server.sha256} instead of 0000"):
        download(server.url, tmp_path / "file", "sha256:0000")
    assert files_below(tmp_path) == []


def test_a_server_that_refuses_is_named_at_once(
    serve: Callable[[bytes], Server], tmp_path: Path
) -> None:
    server = serve(b"")
    server.status = 404
    with pytest.raises(UserError, match=f"{server.url} answered 404"):
        download(server.url, tmp_path / "file", server.digest)
    assert len(server.ranges) == 1


def test_without_a_network_the_message_names_all_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "LJSpeech-1.1"
    data = LJSpeechDataModule(root=str(root), url="http://127.0.0.1:9/archive.tar.bz2")
    monkeypatch.setattr("datamodules.download.time.sleep", lambda _: None)
    with pytest.raises(UserError) as raised:
        data.prepare_data()
    message = str(raised.value)
    for part in ("http://127.0.0.1:9", "refused", f"{root}.tar.bz2", "root", "configs/demo"):
        assert part in message
    assert files_below(tmp_path) == []


def hostile(kind: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo("LJSpeech-1.1/evil")
    if kind == "parent":
        member.name, member.size = "LJSpeech-1.1/../../evil", 1
    elif kind == "link":
        member.type, member.linkname = tarfile.SYMTYPE, "../../evil"
    elif kind == "device":
        member.type = tarfile.CHRTYPE
    return member


@pytest.mark.parametrize("kind", ["parent", "link", "device"])
def test_an_archive_that_would_write_outside_its_folder_is_refused(
    kind: str, tmp_path: Path, own_tones: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    archive = folder / "LJSpeech-1.1.tar.bz2"
    archive.write_bytes(pack(own_tones, hostile(kind)))
    before = files_below(tmp_path)
    with pytest.raises(UserError, match="could not be unpacked"):
        unpack_folder(archive, "LJSpeech-1.1", folder / "root")
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_archive_leaves_nothing(kept: float, tmp_path: Path) -> None:
    content = pack(write_corpus(tmp_path / "source", 20))
    archive = tmp_path / "archive.tar.bz2"
    archive.write_bytes(content[: int(kept * len(content))])
    before = files_below(tmp_path)
    with pytest.raises(UserError, match=r"archive\.tar\.bz2 could not be unpacked"):
        unpack_folder(archive, "LJSpeech-1.1", tmp_path / "root")
    assert files_below(tmp_path) == before


def test_an_archive_put_there_by_hand_is_checked_used_and_kept(
    tmp_path: Path, own_tones: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    archive = folder / "LJSpeech-1.1.tar.bz2"
    archive.write_bytes(pack(own_tones))
    root = folder / "root"
    with pytest.raises(UserError, match=rf"{archive} has the sha256"):
        LJSpeechDataModule(root=str(root)).prepare_data()
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    LJSpeechDataModule(root=str(root), sha256=digest).prepare_data()
    assert files_below(root) == files_below(own_tones)
    assert archive.exists()


def test_an_archive_without_the_folder_is_refused(tmp_path: Path, own_tones: Path) -> None:
    archive = tmp_path / "archive.tar.bz2"
    archive.write_bytes(pack(own_tones))
    with pytest.raises(UserError, match="has no folder Other"):
        unpack_folder(archive, "Other", tmp_path / "root")
    assert not (tmp_path / "root").exists()
