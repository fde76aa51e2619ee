"""Downloads from a real server on the loopback interface, which fails in every way that a mirror can."""

from vae.runtime import mirrors

import contextlib
import gzip
import hashlib
import io
import os
import socket
import struct
import threading
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vae import idx
from vae.errors import InputError

CONTENTS = tuple(struct.pack(">i", index) + bytes(range(index, 200)) * 200 for index in range(4))
LAST = mirrors.FILES[3]


def packed(content: bytes, level: int = 6, mtime: int = 0) -> bytes:
    """The gzip file of a content."""
    return gzip.compress(content, level, mtime=mtime)


class Mirror:
    """A mirror on the loopback interface. `faults[file]` lists how its next answers for that file fail."""

    def __init__(self) -> None:
        self.files = {f"/set/{file}.gz": packed(content) for file, content in zip(mirrors.FILES, CONTENTS, strict=True)}
        self.faults: dict[str, list[str]] = {}
        self.requests: Counter[str] = Counter()
        self.released = threading.Event()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                file = self.path.removeprefix("/set/").removesuffix(".gz")
                mirror.requests[file] += 1
                content = mirror.files.get(self.path)
                fault = mirror.faults[file].pop(0) if mirror.faults.get(file) else ""
                if content is None or fault == "404":
                    self.send_error(404)
                elif fault == "503":
                    self.send_error(503)
                else:
                    self.answer(content, fault)

            def answer(self, content: bytes, fault: str) -> None:
                length = len(content) + 100 * (fault == "truncated")
                self.send_response(200)
                self.send_header("Content-Length", str(length))
                if fault == "encoding":  # as many servers do for a file whose name ends in .gz
                    self.send_header("Content-Encoding", "gzip")
                self.end_headers()
                if fault == "stalled":
                    self.wfile.write(content[: len(content) // 2])
                    self.wfile.flush()
                    mirror.released.wait(10)
                    return
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/set"

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def make_mirror(monkeypatch):
    """Starts mirrors that end with the test."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    started = []

    def make() -> Mirror:
        started.append(Mirror())
        return started[-1]

    yield make
    for mirror in started:
        mirror.close()


@pytest.fixture
def mirror(make_mirror, monkeypatch):
    """The only public mirror of a small data set."""
    mirror = make_mirror()
    monkeypatch.setitem(mirrors.MIRRORS, "mnist", (mirror.url,))
    monkeypatch.setitem(mirrors.CONTENT_MD5, "mnist", tuple(hashlib.md5(content).hexdigest() for content in CONTENTS))
    return mirror


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The seconds of each pause between two attempts, which the tests do not wait for."""
    made: list[float] = []
    monkeypatch.setattr(mirrors.time, "sleep", made.append)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, also hidden ones."""
    return {path.name: path.read_bytes() for path in folder.rglob("*")} if folder.exists() else {}


WHOLE = dict(zip(mirrors.FILES, CONTENTS, strict=True))


def fails(folder: Path, environment: dict[str, str] | None = None) -> str:
    """Checks that a download fails and leaves no file. Returns its message."""
    with pytest.raises(InputError) as caught:
        mirrors.download("mnist", folder, environment or {})
    assert contents(folder) == {}
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "MNIST_MIRROR" in message
    assert "dvc exp run -S data.name=digits" in message
    return message


def test_a_download(mirror, tmp_path, pauses):
    """It requests each of the four files once, decompresses them, and writes nothing else."""
    assert mirrors.download("mnist", tmp_path / "new" / "data", {}) == [mirror.url]
    assert contents(tmp_path / "new" / "data") == WHOLE
    assert mirror.requests == dict.fromkeys(mirrors.FILES, 1)
    assert pauses == []


def test_another_compression(mirror, tmp_path):
    """A gzip file with other bytes and the same content is valid."""
    for file, content in WHOLE.items():
        other = packed(content, level=1, mtime=7)
        assert other != mirror.files[f"/set/{file}.gz"]
        mirror.files[f"/set/{file}.gz"] = other
    mirrors.download("mnist", tmp_path, {})
    assert contents(tmp_path) == WHOLE


def test_a_server_that_declares_the_encoding(mirror, tmp_path, pauses):
    """A server may declare a .gz file as encoded content. The bytes are the same, so the file is valid."""
    mirror.faults = {file: ["encoding"] * 9 for file in mirrors.FILES}
    mirrors.download("mnist", tmp_path, {})
    assert contents(tmp_path) == WHOLE
    assert pauses == []


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "damaged"),  # the length in the trailer
        (lambda content: content[: len(content) // 2], "damaged"),
        (lambda content: content[:20] + bytes(8) + content[28:], "damaged"),
        (lambda content: b"<html>log in to this network</html>", "log in to it in a browser"),
        (lambda content: packed(b"another data set"), "MD5"),
        (lambda content: packed(b""), "MD5"),
    ],
    ids=["trailer", "half", "holed", "captive portal", "other content", "no content"],
)
def test_a_bad_file(mirror, tmp_path, index, damage, reason):
    """The download fails if any of the four files is not the published one."""
    file = mirrors.FILES[index]
    mirror.files[f"/set/{file}.gz"] = damage(mirror.files[f"/set/{file}.gz"])
    message = fails(tmp_path / "data")
    assert f"{file}.gz" in message
    assert mirror.url in message
    assert reason in message


def test_an_empty_answer(mirror, tmp_path):
    """It counts as a failure of the source."""
    mirror.files[f"/set/{LAST}.gz"] = b""
    message = fails(tmp_path / "data")
    assert f"{LAST}.gz" in message


def test_a_wrong_checksum(mirror, tmp_path, pauses):
    """The message has the checksum that was found and the expected one. There is no second attempt."""
    mirror.files[f"/set/{LAST}.gz"] = packed(b"other")
    message = fails(tmp_path)
    assert hashlib.md5(b"other").hexdigest() in message
    assert hashlib.md5(CONTENTS[3]).hexdigest() in message
    assert pauses == []  # the server would send the same file again


def test_a_file_that_the_mirror_lacks(mirror, tmp_path, pauses):
    """There is no second attempt."""
    del mirror.files[f"/set/{LAST}.gz"]
    message = fails(tmp_path)
    assert f"{mirror.url} (HTTP 404)" in message
    assert pauses == []
    assert mirror.requests[LAST] == 1


@pytest.mark.parametrize("fault", ["503", "truncated"])
def test_transient_faults_are_tried_again(mirror, tmp_path, fault, pauses):
    """The server is overloaded or cut off twice, and then works. The second pause is longer than the first."""
    mirror.faults[LAST] = [fault, fault]
    mirrors.download("mnist", tmp_path, {})
    assert contents(tmp_path) == WHOLE
    assert mirror.requests[LAST] == 3
    assert len(pauses) == 2
    assert 0 < pauses[0] < pauses[1]


@pytest.mark.parametrize("fault", ["503", "truncated"])
def test_transient_faults_that_do_not_end(mirror, tmp_path, fault, pauses):
    """After a few attempts the source counts as failed."""
    mirror.faults[LAST] = [fault] * 50
    message = fails(tmp_path)
    assert mirror.requests[LAST] == mirrors.ATTEMPTS
    assert len(pauses) == mirrors.ATTEMPTS - 1
    assert mirror.url in message


def test_a_server_that_stalls(mirror, tmp_path, monkeypatch, pauses):
    """Silence in the middle of a file is a timeout. It gets other attempts, and the message names it."""
    monkeypatch.setattr(mirrors, "TIMEOUT_SECONDS", (30, 0.5))
    mirror.faults[LAST] = ["stalled"]
    mirrors.download("mnist", tmp_path / "good", {})
    assert contents(tmp_path / "good") == WHOLE
    pauses.clear()
    mirror.faults[LAST] = ["stalled"] * 50
    message = fails(tmp_path / "bad")
    assert "timed out" in message
    assert len(pauses) == mirrors.ATTEMPTS - 1


@pytest.fixture
def refusing():
    """An address whose port no process listens on."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


def test_the_next_source_if_one_fails(mirror, make_mirror, refusing, tmp_path, monkeypatch):
    """If a mirror refuses the connection, lacks a file or has a wrong one, that file comes from the next mirror."""
    poor = make_mirror()
    del poor.files[f"/set/{mirrors.FILES[1]}.gz"]
    poor.files[f"/set/{LAST}.gz"] = packed(b"other")
    monkeypatch.setitem(mirrors.MIRRORS, "mnist", (refusing, poor.url, mirror.url))
    mirrors.download("mnist", tmp_path, {})
    assert contents(tmp_path) == WHOLE
    assert mirror.requests == {mirrors.FILES[1]: 1, LAST: 1}
    assert poor.requests == dict.fromkeys(mirrors.FILES, 1)


def fill(folder: Path) -> Path:
    """Creates a folder with the four files."""
    folder.mkdir()
    for file, content in WHOLE.items():
        (folder / f"{file}.gz").write_bytes(packed(content))
    return folder


def test_own_folder_first(mirror, tmp_path):
    """MNIST_MIRROR as a folder: no request leaves the machine."""
    own = fill(tmp_path / "own")
    assert mirrors.download("mnist", tmp_path / "data", {"MNIST_MIRROR": str(own)}) == [str(own), mirror.url]
    assert contents(tmp_path / "data") == WHOLE
    assert not mirror.requests


def test_own_url_first(mirror, make_mirror, tmp_path):
    """MNIST_MIRROR as a URL, with a slash at its end."""
    own = make_mirror()
    mirrors.download("mnist", tmp_path, {"MNIST_MIRROR": own.url + "/"})
    assert contents(tmp_path) == WHOLE
    assert own.requests == dict.fromkeys(mirrors.FILES, 1)
    assert not mirror.requests


def test_the_password_of_an_own_mirror_is_not_printed(mirror, make_mirror, tmp_path):
    own = make_mirror()
    private = own.url.replace("http://", "http://user:secret@")
    assert mirrors.download("mnist", tmp_path / "good", {"MNIST_MIRROR": private}) == [own.url, mirror.url]
    own.files.clear()
    mirror.files.clear()
    message = fails(tmp_path / "bad", {"MNIST_MIRROR": private})
    assert own.url in message
    assert "secret" not in message


@pytest.mark.parametrize("value", ["", "  "])
def test_own_mirror_that_is_blank(mirror, tmp_path, value):
    """A blank MNIST_MIRROR counts as not set."""
    mirrors.download("mnist", tmp_path, {"MNIST_MIRROR": value})
    assert contents(tmp_path) == WHOLE


def test_own_folder_in_the_home(mirror, tmp_path, monkeypatch):
    """`~` is the home folder, as in a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / "own")
    mirrors.download("mnist", tmp_path / "data", {"MNIST_MIRROR": "~/own"})
    assert contents(tmp_path / "data") == WHOLE
    assert not mirror.requests


def test_own_folder_as_a_url(mirror, tmp_path):
    own = fill(tmp_path / "own")
    mirrors.download("mnist", tmp_path / "data", {"MNIST_MIRROR": own.as_uri()})
    assert contents(tmp_path / "data") == WHOLE
    assert not mirror.requests


def test_own_folder_that_lacks_a_file(mirror, tmp_path):
    """A missing file comes from the next source."""
    own = fill(tmp_path / "own")
    (own / f"{LAST}.gz").unlink()
    mirrors.download("mnist", tmp_path / "data", {"MNIST_MIRROR": str(own)})
    assert contents(tmp_path / "data") == WHOLE
    assert mirror.requests == {LAST: 1}


def test_if_all_sources_fail_each_is_named(mirror, make_mirror, refusing, tmp_path, monkeypatch):
    """One message lists every source in order, and why it failed."""
    wrong = make_mirror()
    wrong.files[f"/set/{mirrors.FILES[0]}.gz"] = packed(b"other")
    mirror.files.clear()
    monkeypatch.setitem(mirrors.MIRRORS, "mnist", (refusing, mirror.url, wrong.url))
    own = tmp_path / "own"
    message = fails(tmp_path / "data", {"MNIST_MIRROR": str(own)})
    reasons = [f"{own} (no such file)", f"{refusing} (", f"{mirror.url} (HTTP 404)", f"{wrong.url} (MD5 "]
    places = [message.index(reason) for reason in reasons]
    assert places == sorted(places)


def test_published_gzip_checksum(mirror, tmp_path, monkeypatch):
    """A data set with published checksums of its gzip files must match them."""
    monkeypatch.setitem(mirrors.MIRRORS, "kmnist", (mirror.url,))
    published = tuple(hashlib.md5(mirror.files[f"/set/{file}.gz"]).hexdigest() for file in mirrors.FILES)
    monkeypatch.setitem(mirrors.GZIP_MD5, "kmnist", published)
    mirrors.download("kmnist", tmp_path / "good", {})
    assert contents(tmp_path / "good") == WHOLE
    mirror.files[f"/set/{LAST}.gz"] = packed(CONTENTS[3] + b"x")
    with pytest.raises(InputError, match="MD5"):
        mirrors.download("kmnist", tmp_path / "bad", {})
    assert contents(tmp_path / "bad") == {}


def test_every_data_set_has_mirrors_and_checksums():
    """Each published file has a checksum of 32 digits, and all checksums are different."""
    checksums = mirrors.CONTENT_MD5 | mirrors.GZIP_MD5
    assert set(checksums) == set(mirrors.MIRRORS)
    assert all(mirrors.MIRRORS.values())
    assert all(len(found) == len(mirrors.published(name)) for name, found in checksums.items())
    every = [checksum for found in checksums.values() for checksum in found]
    assert len(every) == len(set(every)) == 4 * 3 + 1
    assert all(len(checksum) == 32 and int(checksum, 16) for checksum in every)


def test_unreachable(mirror, refusing, tmp_path, monkeypatch):
    """An empty list if a source answers, otherwise why each source failed. No file is written."""
    monkeypatch.chdir(tmp_path)
    assert mirrors.unreachable("mnist", {}) == []
    assert sum(mirror.requests.values()) == 1
    monkeypatch.setitem(mirrors.MIRRORS, "mnist", (refusing,))
    failures = mirrors.unreachable("mnist", {"MNIST_MIRROR": "nowhere"})
    assert [failure.source for failure in failures] == ["nowhere", refusing]
    assert [failure.away for failure in failures] == [False, True]  # a wrong folder can be mended
    assert contents(tmp_path) == {}


def test_present(mirror, tmp_path):
    """The folder must have all four files of this data set. Files of another data set do not count."""
    assert not mirrors.present("mnist", tmp_path)
    mirrors.download("mnist", tmp_path, {})
    assert mirrors.present("mnist", tmp_path)
    mirrors.download("digits", tmp_path, {})
    assert not mirrors.present("mnist", tmp_path)
    assert mirrors.present("kmnist", tmp_path)  # its content has no published checksum


def letters(transposed: np.ndarray, labels: np.ndarray) -> bytes:
    """An archive like EMNIST's: compressed IDX files of several data sets, with transposed images."""
    packets = io.BytesIO()
    with zipfile.ZipFile(packets, "w") as archive:
        archive.writestr("gzip/emnist-digits-train-labels-idx1-ubyte.gz", packed(b"others"))
        for split, part in (("train", slice(None, -3)), ("test", slice(-3, None))):
            count = len(labels[part])
            images = struct.pack(">4i", 2051, count, 28, 28) + transposed[part].tobytes()
            archive.writestr(f"gzip/emnist-letters-{split}-images-idx3-ubyte.gz", packed(images))
            content = struct.pack(">2i", 2049, count) + labels[part].tobytes()
            archive.writestr(f"gzip/emnist-letters-{split}-labels-idx1-ubyte.gz", packed(content))
    return packets.getvalue()


def test_letters_are_upright(make_mirror, tmp_path, monkeypatch):
    """EMNIST comes in one archive, which is checked as a whole. Its images are transposed, and come out upright."""
    generator = np.random.default_rng(0)
    upright = generator.integers(0, 256, (8, 28, 28)).astype(np.uint8)
    labels = generator.integers(1, 27, 8).astype(np.uint8)
    archive, mirror = letters(upright.transpose(0, 2, 1), labels), make_mirror()
    monkeypatch.setitem(mirrors.MIRRORS, "emnist-letters", (mirror.url,))
    monkeypatch.setitem(mirrors.GZIP_MD5, "emnist-letters", (hashlib.md5(archive).hexdigest(),))
    mirror.files = {"/set/gzip.zip": archive}
    mirrors.download("emnist-letters", tmp_path / "data", {})
    assert contents(tmp_path / "data") == dict(zip(mirrors.FILES, idx.files(upright, labels, test=3), strict=True))
    assert mirror.requests == {"gzip.zip": 1}
    assert mirrors.present("emnist-letters", tmp_path / "data")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "gzip.zip").write_bytes(archive + b"0")
    mirror.files = {}
    with pytest.raises(InputError, match=r"gzip\.zip of emnist-letters.*MD5.*HTTP 404.*that has gzip\.zip, or use"):
        mirrors.download("emnist-letters", tmp_path / "bad", {"MNIST_MIRROR": str(tmp_path / "own")})
    assert contents(tmp_path / "bad") == {}


def test_images_of_your_own_are_no_mirror(mirror, tmp_path):
    """If MNIST_MIRROR has other files, the checksum error names the way to use them."""
    own = fill(tmp_path / "own")
    (own / f"{LAST}.gz").write_bytes(packed(b"labels of other images"))
    del mirror.files[f"/set/{LAST}.gz"]
    message = fails(tmp_path / "data", {"MNIST_MIRROR": str(own)})
    assert f"{own} (MD5 " in message
    assert "-S data.name=folder -S data.path=<folder>" in message
    (own / f"{LAST}.gz").unlink()
    assert "data.name=folder" not in fails(tmp_path / "data", {"MNIST_MIRROR": str(own)})


def test_a_folder_that_cannot_be_written(mirror, tmp_path):
    """The operating system's error names the path. The file in the way does not change."""
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "data"):
        with pytest.raises(OSError) as caught:
            mirrors.download("mnist", folder, {})
        assert str(tmp_path / "file") in str(caught.value.filename)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_disk_that_fills(mirror, tmp_path, monkeypatch):
    """A write that fails in the middle leaves no file, also none of those that were written before."""
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if LAST not in path.name:
            return write(path, content)
        write(path, content[:100])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        mirrors.download("mnist", tmp_path, {})
    assert contents(tmp_path) == {}


def test_interrupted(mirror, tmp_path, monkeypatch):
    """A signal between two attempts leaves no file."""
    mirror.faults[LAST] = ["503"]

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mirrors.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mirrors.download("mnist", tmp_path, {})
    assert contents(tmp_path) == {}


def test_digits(digits_folder, tmp_path):
    """The IDX files have scikit-learn's labels and its pictures, enlarged. They are the same each time."""
    bunch = load_digits()
    pictures, labels = [], []
    for split, count in (("train", 1437), ("t10k", 360)):
        content = (digits_folder / f"{split}-images-idx3-ubyte").read_bytes()
        assert struct.unpack(">4i", content[:16]) == (2051, count, 28, 28)
        pictures.append(np.frombuffer(content, np.uint8, offset=16).reshape(count, 28, 28))
        content = (digits_folder / f"{split}-labels-idx1-ubyte").read_bytes()
        assert struct.unpack(">2i", content[:8]) == (2049, count)
        labels.append(np.frombuffer(content, np.uint8, offset=8))
    images = np.concatenate(pictures)
    assert (images.min(), images.max()) == (0, 255)
    assert np.array_equal(np.concatenate(labels), bunch.target)
    coarse = images.reshape(-1, 4, 7, 4, 7).mean(axis=(2, 4))  # means of 4x4 blocks, as below
    original = bunch.images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)) * 255 / 16
    assert np.abs(coarse - original).mean() < 8  # of 255
    again = tmp_path / "again"
    assert mirrors.download("digits", again, {"MNIST_MIRROR": "nowhere"}) == ["an installed package"]
    assert contents(again) == contents(digits_folder)


def test_real_mnist(root, tmp_path, monkeypatch):
    """The checksums are right for MNIST itself. This needs a copy of MNIST."""
    own = Path(os.environ.get("MNIST_MIRROR") or root.parent / "shared" / "mnist")
    if not all((own / f"{file}.gz").is_file() for file in mirrors.FILES):
        pytest.skip("no folder with MNIST; set MNIST_MIRROR")
    monkeypatch.setitem(mirrors.MIRRORS, "mnist", ())
    mirrors.download("mnist", tmp_path, {"MNIST_MIRROR": str(own)})
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {
        "train-images-idx3-ubyte": 16 + 60000 * 784,
        "train-labels-idx1-ubyte": 8 + 60000,
        "t10k-images-idx3-ubyte": 16 + 10000 * 784,
        "t10k-labels-idx1-ubyte": 8 + 10000,
    }
