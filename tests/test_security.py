"""Hostile files, mirrors and names run no code, write nothing outside, take bounded memory, and show no password."""

from vae.runtime import images, mirrors, network
from vae.runtime.checkpoint import Checkpoint

import ast
import gzip
import json
import os
import pickle
import re
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from mlflow import MlflowClient, MlflowException
from PIL import Image
from safetensors.torch import save_file

from vae import model
from vae.errors import InputError
from vae.params import parse

CODE = sorted(path for folder in ("src", "pipeline", "tools") for path in Path(folder).rglob("*.py"))
MEGABYTE = 1 << 20
RUN = "0" * 32


class Weapon:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


class Peak:
    """Checks that a block takes at most so many bytes of memory, by what the process holds while it runs."""

    def __init__(self, most: int) -> None:
        self.most, self.peak, self.running = most, 0, True
        self.thread = threading.Thread(target=self.watch)

    def watch(self) -> None:
        process = psutil.Process()
        while self.running:
            self.peak = max(self.peak, process.memory_info().rss)
            time.sleep(0.002)

    def __enter__(self) -> None:
        self.before = psutil.Process().memory_info().rss
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()
        assert self.peak - self.before < self.most


def one_line(caught) -> str:
    """The message of an InputError, which must be one short line."""
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 1500
    return message


# Code in files.


def calls(path: Path) -> set[str]:
    """The names of everything that a file calls, with the names of their keywords."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            words = [f"{item.arg}={ast.unparse(item.value)}" for item in node.keywords]
            found.add(f"{ast.unparse(node.func)}({', '.join(words)})")
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {f"import {alias.name}" for alias in node.names}
    return found


def test_no_file_is_loaded_as_code():
    """The code has no pickle, no `eval`, no shell, and loads YAML and checkpoints without code."""
    forbidden = re.compile(
        r"import (pickle|cloudpickle|joblib|dill|shelve|marshal)$|^(eval|exec|compile|__import__)\("
        r"|os\.(system|popen)\("
        r"|shell=True|allow_pickle=True|yaml\.(full_load|unsafe_load|load\((?!Loader=yaml\.BaseLoader))"
        r"|torch\.load\((?!.*weights_only=True)"
    )
    assert len(CODE) > 60
    assert {(str(path), call) for path in CODE for call in calls(path) if forbidden.search(call)} == set()


def test_a_checkpoint_with_a_pickle_runs_no_code(tmp_path, capsys):
    for number, content in enumerate((pickle.dumps(Weapon(tmp_path / "ran")), None)):
        path = tmp_path / f"{number}.pt"
        if content is None:
            torch.save({"fit": Weapon(tmp_path / "ran")}, path)
        else:
            path.write_bytes(content)
        assert Checkpoint(path, own=True).load() is None
        assert "training from the start" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "1.pt", weights_only=False)  # the weapon works
    assert (tmp_path / "ran").exists()


def header_of(path: Path) -> tuple[dict, bytes]:
    """The header of a safetensors file, and its content."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


@pytest.fixture
def saved(vae, tmp_path):
    """A file of a small model."""
    path = tmp_path / "vae.safetensors"
    model.save(vae(prior="flow"), path)
    return path


def described(path: Path, **changes: object) -> None:
    """Changes the configuration that a model file names."""
    header, content = header_of(path)
    config = json.loads(header["__metadata__"]["model"]) | changes
    header["__metadata__"]["model"] = json.dumps(config)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": [16384] * 16},
        {"architecture": "conv", "channels": [16384, 16384], "blocks": 64},
        {"flow_hidden": [16384] * 16, "flow_couplings": 64},
        {"encoder": ["../../etc/passwd"]},
        {"encoder": [16] * 10**6},
        {"prior": "../mixture"},
        {"latent_dim": 2**40},
        {"__class__": "os.system"},
    ],
    ids=str,
)
def test_a_model_file_that_claims_another_network(saved, changes):
    """It is refused before memory is taken for that network: the second would take 3 TB."""
    described(saved, **changes)
    with Peak(200 * MEGABYTE), pytest.raises(InputError) as caught:
        model.load(saved)
    assert str(saved) in one_line(caught)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**8 + 1) + b" " * 100,
        struct.pack("<Q", 50 * MEGABYTE) + b"[" * (50 * MEGABYTE),
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 76)
        + b'{"a":{"dtype":"F32","shape":[1099511627776,4],"data_offsets":[0,16]}}       '
        + bytes(16),
        struct.pack("<Q", 76)
        + b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,17592186044416]}}       '
        + bytes(16),
    ],
    ids=[
        "header beyond the file",
        "header too long",
        "nested header",
        "empty",
        "huge shape",
        "offsets beyond the file",
    ],
)
def test_a_model_file_with_a_hostile_header(tmp_path, content):
    path = tmp_path / "vae.safetensors"
    path.write_bytes(content)
    with Peak(300 * MEGABYTE), pytest.raises(InputError) as caught:
        model.load(path)
    assert str(path) in one_line(caught)


def test_metadata_nested_too_deeply(saved):
    described(saved, encoder=json.loads("[" * 500 + "]" * 500))
    with pytest.raises(InputError) as caught:
        model.load(saved)
    one_line(caught)
    header, content = header_of(saved)
    header["__metadata__"]["model"] = "[" * 100_000
    text = json.dumps(header).encode()
    saved.write_bytes(struct.pack("<Q", len(text)) + text + content)
    with pytest.raises(InputError) as caught:
        model.load(saved)
    one_line(caught)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(vae, tmp_path, value):
    network = vae()
    with torch.no_grad():
        network.decode.bias[3] = value
    model.save(network, tmp_path / "vae.safetensors")
    with pytest.raises(InputError, match="values that are not finite"):
        model.load(tmp_path / "vae.safetensors")


def test_weights_of_another_shape_or_name(vae, tmp_path):
    for change in ({"decode.layers.2.bias": torch.zeros(3)}, {"../../x": torch.zeros(1)}):
        network, path = vae(), tmp_path / "vae.safetensors"
        metadata = {"model": network.config.model_dump_json()}
        save_file({name: tensor.clone() for name, tensor in network.state_dict().items()} | change, path, metadata)
        with pytest.raises(InputError) as caught:
            model.load(path)
        one_line(caught)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["vae.safetensors"]


# params.yaml.


@pytest.fixture(scope="session")
def published(root) -> str:
    """The text of params.yaml."""
    return (root / "params.yaml").read_text()


def refused(text: str) -> str:
    with Peak(200 * MEGABYTE), pytest.raises(InputError) as caught:
        parse(text)
    return one_line(caught)


def test_tags_of_yaml_run_no_code(published, tmp_path):
    """They are read as if they were not there, so that the schema refuses what is left."""
    for value in (
        f"!!python/object/apply:os.system ['touch {tmp_path}/ran']",
        f"!!python/object/new:pathlib.Path.touch ['{tmp_path}/ran']",
        f"!!python/object/apply:subprocess.check_output [['touch', '{tmp_path}/ran']]",
    ):
        assert "train.epochs" in refused(re.sub(r"\n  epochs: \d+ ", f"\n  epochs: {value} ", published, count=1))
    assert not (tmp_path / "ran").exists()


def test_anchors_that_explode(published):
    """Ten levels of ten references each stand for 10^10 values: as a block, a value, and an unknown key."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 10)]
    bomb = "\n".join(lines)
    assert "unknown key" in refused(f"{bomb}\n{published}")
    assert "data" in refused(f"{bomb}\ndata: *a9\n")
    nested = re.sub(r"^a", "  a", bomb, flags=re.M)
    assert "train." in refused(published.replace("\ntrain:\n", f"\ntrain:\n{nested}\n", 1))
    value = "[&a0 [x, x, x, x, x, x, x, x, x, x]"
    for level in range(1, 10):
        value += f", &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]"
    assert "model.encoder" in refused(re.sub(r"\n  encoder: \[512\] ", f"\n  encoder: {value}] ", published, count=1))


def test_yaml_nested_too_deeply_or_into_itself(published):
    assert "nested too deeply" in refused("[" * 100_000)
    assert "nested too deeply" in refused("a: " + "{a: " * 20_000 + "}" * 20_000)
    refused(published.replace("encoder: [512]", "encoder: &a [*a]"))


def test_names_that_are_paths_or_have_lines(published):
    """An experiment or a model in the store has a plain name."""
    for name in (
        "..",
        "../x",
        "a/../../x",
        "/",
        "a//b",
        "./a",
        '"a\\nb"',
        '"a\\n"',
        '"a\\0b"',
        "a b",
        "a'b",
        "a`b",
        "$(x)",
    ):
        for key, old in (("experiment", "vae"), ("registered_model", "vae")):
            changed = re.sub(rf"\n  {key}: {old} ", lambda _, key=key, name=name: f"\n  {key}: {name} ", published)
            assert f"track.{key}" in refused(changed)


def test_a_value_of_a_million_letters_gives_a_short_line(published):
    assert "train.epochs" in refused(re.sub(r"\n  epochs: \d+ ", f"\n  epochs: {'9' * 10**6} ", published, count=1))


# Mirrors.


class Hostile:
    """A server on the loopback interface that answers with the pieces of a generator, one after the other."""

    def __init__(self, pieces, length: int | None = None) -> None:
        self.sent, outer = 0, self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                try:
                    for piece in pieces():
                        self.wfile.write(piece)
                        outer.sent += len(piece)
                except OSError:
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hostile(monkeypatch):
    """Makes hostile mirrors, each the only one of MNIST. Nobody waits between two attempts."""
    monkeypatch.setattr(mirrors, "time", SimpleNamespace(sleep=lambda _: None, monotonic=time.monotonic))
    started = []

    def make(pieces, length: int | None = None) -> Hostile:
        started.append(Hostile(pieces, length))
        monkeypatch.setitem(mirrors.MIRRORS, "mnist", (started[-1].url,))
        return started[-1]

    yield make
    for item in started:
        item.server.shutdown()
        item.server.server_close()


def download_fails(folder: Path, most: int) -> str:
    with Peak(most), pytest.raises(InputError) as caught:
        mirrors.download("mnist", folder, {})
    assert not folder.exists() or not list(folder.rglob("*"))
    return one_line(caught)


def forever(piece: bytes):
    while True:
        yield piece


def test_a_mirror_that_never_ends(hostile, tmp_path, monkeypatch):
    """With a wrong length, or without one."""
    monkeypatch.setattr(mirrors, "MOST_BYTES", 4 * MEGABYTE)
    server = hostile(lambda: forever(b"\x1f" * 65536))
    assert f"{server.url} (more than 4 MiB)" in download_fails(tmp_path / "data", 100 * MEGABYTE)
    server = hostile(lambda: forever(b"\x1f" * 65536), length=10**12)
    assert "more than 4 MiB" in download_fails(tmp_path / "data", 100 * MEGABYTE)


def test_a_mirror_that_drips(hostile, tmp_path, monkeypatch):
    """It gives up after the time-out, although no two bytes are that far apart."""
    monkeypatch.setattr(mirrors, "TIMEOUT_SECONDS", (5, 0.5))
    monkeypatch.setattr(mirrors, "ATTEMPTS", 1)
    released = threading.Event()

    def drops():
        while not released.wait(0.05):
            yield b"\x1f"

    hostile(drops, length=10**6)
    assert "timed out" in download_fails(tmp_path / "data", 100 * MEGABYTE)
    released.set()


def bomb(size: int) -> bytes:
    """A small gzip file of that many zeros."""
    engine = zlib.compressobj(9, wbits=31)
    parts = [engine.compress(bytes(MEGABYTE)) for _ in range(size // MEGABYTE)]
    return b"".join([*parts, engine.flush()])


def test_a_mirror_with_a_gzip_bomb(hostile, tmp_path, monkeypatch):
    """One megabyte stands for a gigabyte. At most the size of a real file is decompressed."""
    content = bomb(1000 * MEGABYTE)
    assert len(content) < 2 * MEGABYTE
    monkeypatch.setattr(mirrors, "MOST_BYTES", 8 * MEGABYTE)
    hostile(lambda: [content], length=len(content))
    assert "more than 8 MiB when decompressed" in download_fails(tmp_path / "data", 100 * MEGABYTE)


# Images of one's own.


def load(folder: Path, resize: bool = False):
    return images.load(folder, mirrors.FILES, resize=resize, grey=False, seed=0)


def images_refused(folder: Path, resize: bool = False) -> str:
    with Peak(200 * MEGABYTE), pytest.raises(InputError) as caught:
        load(folder, resize)
    return one_line(caught)


@pytest.fixture
def pictures(tmp_path):
    """Twelve pictures in two classes."""
    for number, array in enumerate(np.random.default_rng(0).integers(0, 256, (12, 28, 28)).astype(np.uint8)):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    return tmp_path / "pictures"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int) -> bytes:
    """A PNG file that claims this size, with a few rows of zeros."""
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = zlib.compress(bytes(min(width, 10**5) + 1) * 3)
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(30_000, 30_000), (9000, 9000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)])
@pytest.mark.parametrize("resize", [False, True])
def test_a_picture_that_is_a_bomb(pictures, size, resize):
    """A file of a few bytes that claims gigapixels."""
    (pictures / "a/bomb.png").write_bytes(png(*size))
    assert "bomb.png" in images_refused(pictures, resize)


def test_a_picture_with_a_bomb_of_text(pictures):
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 * MEGABYTE), 9))
    content = png(28, 28)
    (pictures / "a/text.png").write_bytes(content[:33] + text + content[33:])
    assert "text.png" in images_refused(pictures)


def test_links_that_leave_the_folder(pictures, tmp_path):
    """A picture, a class and a dangling link. A link within the folder, or to DVC's cache, is a picture."""
    private = tmp_path / "private"
    private.mkdir()
    Image.fromarray(np.full((28, 28), 7, np.uint8)).save(private / "secret.png")
    link = pictures / "a/link.png"
    link.symlink_to(private / "secret.png")
    assert f"{link}: is a link out of" in images_refused(pictures)
    link.unlink()
    (pictures / "c").symlink_to(private)
    assert "is a link out of" in images_refused(pictures)
    (pictures / "c").unlink()
    link.symlink_to(private / "nothing.png")
    assert f"{link}: is no file" in images_refused(pictures)
    link.unlink()
    link.symlink_to(pictures / "b/1.png")
    assert len(load(pictures)[0]) == 13
    link.unlink()
    cached = tmp_path / "cache/files/md5/ab/cdef"
    cached.parent.mkdir(parents=True)
    (private / "secret.png").rename(cached)
    link.symlink_to(cached)
    assert len(load(pictures)[0]) == 13


def test_a_pipe_among_the_pictures_does_not_wait(pictures):
    os.mkfifo(pictures / "a/pipe.png")
    assert "pipe.png: is no file" in images_refused(pictures)


def test_idx_files_that_claim_too_much(tmp_path):
    """Headers whose product is 0, negative or far beyond the file, and a gzip bomb."""
    names = [tmp_path / "idx" / name for name in mirrors.FILES]
    names[0].parent.mkdir()
    for path, kind in zip(names, ("images", "labels") * 2, strict=True):
        shape = (8, 28, 28) if kind == "images" else (8,)
        path.write_bytes(
            struct.pack(f">{len(shape) + 1}i", 2051 if kind == "images" else 2049, *shape) + bytes(8 * 784)
        )
    for path in names[1::2]:
        path.write_bytes(path.read_bytes()[:16])
    assert len(load(names[0].parent)[0]) == 16
    for shape in (
        (2**31 - 1, 2**15, 2**15),
        (2**31 - 1, 0, 0),
        (0, 0, 2**31 - 1),
        (8, -28, -28),
        (-8, -28, 28),
        (-1, 1, 1),
    ):
        names[0].write_bytes(struct.pack(">4i", 2051, *shape) + bytes(8 * 784))
        assert f"{names[0]}: not a whole IDX file" in images_refused(names[0].parent, resize=True)
        names[0].write_bytes(struct.pack(">4i", 2051, *shape))
        assert f"{names[0]}: not a whole IDX file" in images_refused(names[0].parent, resize=True)
    names[0].unlink()
    packed = Path(f"{names[0]}.gz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "MOST_BYTES", 8 * MEGABYTE)
        packed.write_bytes(bomb(1000 * MEGABYTE))
        assert "more than 8 MiB when decompressed" in images_refused(names[0].parent)
    packed.unlink()
    names[0].symlink_to(tmp_path / "outside")
    (tmp_path / "outside").write_bytes(gzip.compress(b""))
    assert "is a link out of" in images_refused(names[0].parent)


# Stores.


@pytest.mark.parametrize("is_dir", [True, False])
@pytest.mark.parametrize("name", ["../outside", "models/../../outside", "/{tmp_path}/outside", "..%2Foutside"])
def test_a_server_cannot_choose_where_its_files_are_written(tmp_path, monkeypatch, name, is_dir):
    """`make reproduce` downloads all files of a run. This is MLflow's promise: this project makes none of the paths."""
    name, scratch = name.format(tmp_path=tmp_path), tmp_path / "parent/scratch"
    info = {"run_id": RUN, "artifact_uri": "mlflow-artifacts:/run", "experiment_id": "0", "status": "FINISHED"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            listed = {"files": [{"path": name, "is_dir": is_dir, "file_size": 4}] if self.path.endswith("=run") else []}
            asked = "run" if "/runs/get" in self.path else "list" if "path=" in self.path else "file"
            body = {"run": json.dumps({"run": {"info": info}}), "list": json.dumps(listed), "file": "evil"}[asked]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    scratch.mkdir(parents=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        client = MlflowClient(f"http://127.0.0.1:{server.server_port}")
        assert client.get_run(RUN).info.artifact_uri == info["artifact_uri"]
        with pytest.raises(MlflowException, match="Invalid path"):
            client.download_artifacts(RUN, "", str(scratch))
        server.shutdown()
    assert [*tmp_path.rglob("*")] == [scratch.parent, scratch]


# Passwords.


@pytest.mark.parametrize(
    "password", ["secret", "se/cret", "se@cret", "secret@", "s:e:cret", "%2Fsecret", "se?cret", "se#cret"]
)
def test_passwords_do_not_show(password):
    """Whatever letters a password has, also in the middle of a message."""
    for text in (
        f"http://user:{password}@host:80/x",
        f"a message about postgresql://user:{password}@host/db, and more",
    ):
        assert "cret" not in network.shown(text)
        assert "host" in network.shown(text)


def test_a_mirror_with_a_password_that_fails(hostile, tmp_path, monkeypatch, capsys):
    """The password is in no message, and in nothing that is printed."""
    server = hostile(lambda: [b"no data"], length=7)
    for address in (server.url, "http://127.0.0.1:9", "http://no.such.host.invalid", "ftp://host"):
        scheme, _, rest = address.partition("://")
        own = f"{scheme}://user:se@cr/et@{rest}"
        with pytest.raises(InputError) as caught:
            mirrors.download("mnist", tmp_path / "data", {"MNIST_MIRROR": own})
        printed = capsys.readouterr()
        for text in (str(caught.value), printed.out, printed.err):
            assert "cr/et" not in text
            assert "user" not in text
