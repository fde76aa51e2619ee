"""How a script runs: paths from argv, and one clear line where a user can mend what went wrong."""

import argparse
import errno
import gc
import inspect
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from vae.errors import InputError

# Imports of torch and mlflow make a million objects and free none: with the usual 700, a fifth of their time goes to
# looking for garbage. Hence scripts import this module first.
gc.set_threshold(100_000)


def _terminate(signum: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signum)  # unwinds the stack, so that every `finally` and `with` gets its turn


def _parser(main: Callable[..., None]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=inspect.getdoc(main))
    for name, parameter in inspect.signature(main).parameters.items():
        if parameter.annotation is bool:
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(name, type=parameter.annotation)
    return parser


def run(main: Callable[..., None]) -> None:
    """Calls `main` with argv: a positional argument for each Path or str parameter, a flag for each bool.

    An InputError, or a file that cannot be read or written, is one line on stderr and exit code 1.
    """
    arguments = vars(_parser(main).parse_args())
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main(**arguments)
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.filename is not None:  # an unwritable folder
            sys.exit(f"error: {error.filename}: {error.strerror}; make sure that it exists and can be written")
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        sys.exit(f"error: {error.strerror}; make room, and start again")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is written and closed; taking torch down in good order takes most of a second in each stage
