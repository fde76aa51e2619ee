"""How a script runs: arguments from its signature, and one clear line for an error that the user can mend.
Scripts import this module before torch and mlflow, because it sets up the process."""

from vae.runtime import memory

import argparse
import ctypes
import errno
import gc
import inspect
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from vae.errors import InputError

# Imports of torch and mlflow create a million objects and free none. With the default of 700, a fifth of their time
# goes into the search for garbage.
gc.set_threshold(100_000)

# libgomp reads this when torch is loaded. It limits how long a waiting thread spins: without a limit, trainings that
# share a core take five times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, products on a GPU do not repeat their bits

# The libraries read these when torch is loaded. Then every x86-64 CPU with AVX2 gives the same bits.
AVX2_ALONE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}
INSTRUCTIONS = re.compile(r"^ +instructions: *[\"']?avx2\b", re.MULTILINE)  # in params.yaml


def limit_instructions(arguments: list[str]) -> None:
    """Sets the variables above if the params.yaml that a script gets as its first argument says so.
    It is read as text, because the script checks it against the schema later, and names what is wrong."""
    path = Path(*arguments[1:2])
    readable = path.suffix == ".yaml" and path.is_file() and os.access(path, os.R_OK)
    if readable and INSTRUCTIONS.search(path.read_text(errors="replace")):
        os.environ.update(AVX2_ALONE)


limit_instructions(sys.argv)

INTERRUPT_SECONDS = 2  # after which an interrupt ends the process, whatever it waits for
last_words = "interrupted"  # the line with which an interrupted script ends
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # the variable with the file from which torchrun reads the error of a process


def leave(status: int) -> NoReturn:
    """Ends the process now. Unloading torch would take most of a second, and waiting for threads of a client library
    could take forever. Files are closed, and the kernel releases the locks. An interrupted process under torchrun says
    nothing: torchrun's own process says it once, or says which process has failed."""
    with suppress(OSError, RuntimeError):  # a full disk, a closed pipe, or a print that this one interrupts
        if status in (128 + signal.SIGINT, 128 + signal.SIGTERM) and ERROR_FILE not in os.environ:
            print(last_words, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _end_soon(signals: int) -> None:
    """Ends the process a short time after an interrupt, even if its main thread never comes back from a library."""
    while os.read(signals, 1) != bytes([signal.SIGINT]):
        pass
    time.sleep(INTERRUPT_SECONDS)
    leave(128 + signal.SIGINT)


def heed_interrupts() -> None:
    """Makes an interrupt end this process with one line, also while it imports torch. `run` lets it unwind the stack.
    A background job of a shell, which ignores interrupts, goes on ignoring them."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: leave(128 + signal.SIGINT))
        signals, written = os.pipe()
        os.set_blocking(written, False)
        signal.set_wakeup_fd(written)
        threading.Thread(target=_end_soon, args=(signals,), daemon=True).start()


heed_interrupts()

LOCAL = "127.0.0.1,localhost"


def ask_local_servers_directly() -> None:
    """Excepts this machine from the user's proxy, which cannot reach its servers."""
    proxies = [f"{kind}_proxy" for kind in ("http", "https", "all")]
    if any(os.environ.get(name) or os.environ.get(name.upper()) for name in proxies):
        excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""  # small letters come first
        if LOCAL not in excepted:
            os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{excepted},{LOCAL}".strip(",")


ask_local_servers_directly()

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Lets the allocator keep freed memory for the next tensor. Otherwise the kernel clears its pages every time."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc has it, other C libraries do not
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


CURES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room")  # for errors of the system
CURES |= dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit with `ulimit -n`")


def _terminate(signum: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signum)  # unwinds the stack, so that every `finally` and `with` runs


def _parser(main: Callable[..., None]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=inspect.getdoc(inspect.getmodule(main)), allow_abbrev=False)
    for name, parameter in inspect.signature(main).parameters.items():
        if parameter.annotation is bool:
            parser.add_argument(f"--{name}", action="store_true")
        elif parameter.kind is parameter.KEYWORD_ONLY:
            parser.add_argument(f"--{name}", type=parameter.annotation, required=True)
        else:
            parser.add_argument(name, type=parameter.annotation)
    return parser


def _report(message: str) -> None:
    """Prints an error. Under torchrun all processes would, so each writes it into the file that torchrun reads."""
    if file := os.environ.get(ERROR_FILE):
        content = {"message": message.removeprefix("error: "), "timestamp": int(time.time())}
        Path(file).write_text(json.dumps(content))
    else:
        print(message, file=sys.stderr)


def run(main: Callable[..., None]) -> None:
    """Calls `main` with the arguments of the command line.
    A parameter of type Path or str is a positional argument, or a required option if it is keyword-only.
    A parameter of type bool is a flag.
    An InputError, or a file that cannot be read or written, is one line on stderr and exit code 1."""
    arguments = vars(_parser(main).parse_args())
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    keep_freed_memory()
    status: int | str | None = 0
    try:
        main(**arguments)
        sys.stdout.flush()
    except InputError as error:
        status = f"error: {error}"
    except OSError as error:
        if error.filename is None and error.errno not in CURES:
            raise
        cure = CURES.get(error.errno or 0, "make sure that it exists, and can be read and written")
        files = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        status = f"error: {files or 'system'}: {error.strerror}; {cure}, and start again"
    except (MemoryError, RuntimeError) as error:
        if not memory.is_short(error):
            raise
        reason = str(error).partition("\n")[0].rpartition("] ")[2]
        status = f"error: not enough memory ({reason}); lower the sizes in params.yaml, or end other programs"
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a user who presses Ctrl-C again
        status = 128 + signal.SIGINT
    except SystemExit as error:
        status = error.code
    if isinstance(status, str):
        _report(status)
        status = 1
    leave(status or 0)
