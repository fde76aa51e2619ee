"""How a script runs: arguments from its signature, and one clear line for an error that the user can mend.
Scripts import this module before torch and mlflow, because it sets up the process."""

import argparse
import ctypes
import errno
import gc
import inspect
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

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
    if path.suffix == ".yaml" and path.is_file() and INSTRUCTIONS.search(path.read_text(errors="replace")):
        os.environ.update(AVX2_ALONE)


limit_instructions(sys.argv)

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


def run(main: Callable[..., None]) -> None:
    """Calls `main` with the arguments of the command line.
    A parameter of type Path or str is a positional argument, or a required option if it is keyword-only.
    A parameter of type bool is a flag.
    An InputError, or a file that cannot be read or written, is one line on stderr and exit code 1."""
    arguments = vars(_parser(main).parse_args())
    signal.signal(signal.SIGTERM, _terminate)
    keep_freed_memory()
    try:
        main(**arguments)
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.filename is not None:  # an unwritable folder
            sys.exit(f"error: {error.filename}: {error.strerror}; make sure that it exists, can be read and written")
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        sys.exit(f"error: {error.strerror}; make room, and start again")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # everything is written and closed; unloading torch takes most of a second in each stage
