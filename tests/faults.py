"""Faults that the tests and `make soak` inject: servers that misbehave, databases that are locked, files that are
damaged, and folders with no room."""

import os
import random
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "empty": lambda _content, _random: b"",
    "cut": lambda content, random: content[: random.randrange(len(content))],
    "noise": lambda content, random: random.randbytes(len(content)),
    "bit": lambda content, random: flipped(content, random.randrange(8 * len(content))),
}
ANSWERS = ("401", "429", "500", "503", "redirects", "HTML", "garbage", "hangs", "drips", "closes", "nothing")


def flipped(content: bytes, bit: int) -> bytes:
    """The content with another value of one bit."""
    place = bit // 8
    return content[:place] + bytes([content[place] ^ 1 << bit % 8]) + content[place + 1 :]


def damage(path: Path, kind: str, random: random.Random) -> None:
    """Damages a file, or removes it, or puts a folder in its place."""
    if kind in DAMAGE:
        path.write_bytes(DAMAGE[kind](path.read_bytes(), random))
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()


@contextmanager
def wrong_server(answer: str) -> Iterator[str]:
    """The address of a server that answers each request in a wrong way, as `ANSWERS` names them."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if answer == "hangs":
                over.wait()
            elif answer == "drips":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{")
                while not over.wait(0.2):
                    self.wfile.write(b" ")
            elif answer == "closes":
                self.connection.shutdown(socket.SHUT_RDWR)
            elif answer == "redirects":
                self.reply(302, b"", ("Location", self.path))
            elif answer == "HTML":
                self.reply(200, b"<html>Welcome! Log in.</html>")
            elif answer == "garbage":
                self.reply(200, random.Random(0).randbytes(1000))
            else:
                self.reply(int(answer), b"", ("Retry-After", "600"))

        do_POST = do_PATCH = do_DELETE = do_GET

        def reply(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            for name, value in (("Content-Length", str(len(body))), *headers):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that gives up
    address = f"http://127.0.0.1:{server.server_port}"
    if answer == "nothing":
        server.server_close()
        yield address
        return
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield address
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.socket.close()


@contextmanager
def locked(database: Path, seconds: float) -> Iterator[None]:
    """Another process holds a SQLite database for so many seconds."""
    held = threading.Event()

    def hold() -> None:
        with closing(sqlite3.connect(database, timeout=60)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            held.set()
            time.sleep(seconds)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        yield
    finally:
        thread.join()


def mounts() -> bool:
    """Whether this user may mount a small disk."""
    probe = ["unshare", "--mount", "true"]
    return os.geteuid() == 0 and subprocess.run(probe, capture_output=True, check=False).returncode == 0


@contextmanager
def small_disk(folder: Path, *options: str) -> Iterator[Path]:
    """A disk in memory with these options of tmpfs, such as `size=100k` or `nr_inodes=20`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


# The start of a command of root's that obeys the permissions of files, as other users do.
OBEDIENT = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]


@contextmanager
def read_only(path: Path) -> Iterator[list[str]]:
    """A file or a folder with all that is in it cannot be written. Gives the start of a command that obeys this."""
    subprocess.run(["chmod", "-R", "a-w", str(path)], check=True)
    try:
        yield OBEDIENT if os.geteuid() == 0 else []
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(path)], check=True)


@contextmanager
def full_disk(folder: Path) -> Iterator[list[str]]:
    """A disk without room in the place of a folder."""
    with small_disk(folder, "size=64k"):
        full(folder)
        yield []


@contextmanager
def no_inodes(folder: Path) -> Iterator[list[str]]:
    """A disk on which no file can be made, in the place of a folder."""
    with small_disk(folder, "nr_inodes=1"):
        yield []


@contextmanager
def few_handles(_folder: Path) -> Iterator[list[str]]:
    """The start of a command that can open few files at a time."""
    yield ["prlimit", "--nofile=9"]


def full(folder: Path) -> None:
    """Fills the disk of a folder with one file."""
    with (folder / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
