"""Training in several processes: if TORCHRUN has options of PyTorch's torchrun, a script starts itself under it."""

from vae.runtime import command

import contextlib
import ctypes
import io
import logging
import os
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID"  # a variable that torchrun sets
NOTICED_SECONDS = 5  # in which torchrun notices that a process has ended
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def is_first() -> bool:
    """Whether this process is the only one, or the one of several that writes."""
    return UNDER_TORCHRUN not in os.environ or os.environ["RANK"] == "0"


def launch() -> None:
    """Runs this script again, in the processes that TORCHRUN asks for, and exits as they do.
    Returns at once if TORCHRUN is not set, and in these processes. All but the first print nothing on stdout."""
    if UNDER_TORCHRUN in os.environ:
        if sys.platform == "linux":  # torchrun leaves no process behind if it is killed
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if not is_first():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
    elif options := os.environ.get("TORCHRUN"):
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        logging.disable()  # one line says what went wrong
        with tempfile.TemporaryDirectory() as logs:
            status = _run(options, logs)
        if isinstance(status, int):
            command.leave(status)
        sys.exit(status)


def _run(options: str, logs: str) -> int | str:
    """Runs torchrun. Returns an exit code, or one line that says what went wrong."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        with contextlib.redirect_stderr(io.StringIO()) as usage:
            arguments = run.parse_args(["--log-dir", logs, *shlex.split(options), sys.argv[0]])
        arguments.training_script_args = sys.argv[1:]  # not parsed above, because torchrun has options of its own
        run.run(arguments)
    except ChildFailedError as error:
        return f"error: {_reason(error.failures)}"
    except SignalException as error:
        return 128 + error.sigval
    except SystemExit as end:
        return f"error: TORCHRUN={options}: {usage.getvalue().rpartition('error: ')[2].strip()}" if end.code else 0
    except Exception as error:  # noqa: BLE001 (whatever torchrun raises, the options are all that a user can mend)
        reason = " ".join(str(error).split())[:300] or "the number of processes must be 1 or more"
        return f"error: TORCHRUN={options}: {reason}"
    return 0


def _reason(failures: dict[int, Any]) -> str:
    """The first of torchrun's failures, from which the others follow. They are given by the number of the process.
    Processes can miss a killed one before torchrun does. SIGTERM is what torchrun itself sends to the others."""

    def order(number: int) -> tuple[int, bool]:
        failure = failures[number]
        earlier = NOTICED_SECONDS if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM else 0
        return failure.timestamp - earlier, not Path(failure.error_file).is_file()

    first = min(failures, key=order)
    failure = failures[first]
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        return f"process {first} of the training was killed ({name}); run the same command to go on"
    if Path(failure.error_file).is_file():
        return str(failure.message)
    return f"process {first} of the training ended with exit code {failure.exitcode}; what it said is above"
