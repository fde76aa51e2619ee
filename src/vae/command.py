"""How a script runs: paths from argv, and one clear line where a user can mend what went wrong."""

import argparse
import inspect
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from vae.errors import InputError


def _terminate(signum: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signum)  # unwinds the stack, so that every `finally` and `with` gets its turn


def run(main: Callable[..., None]) -> None:
    """Calls `main` with a path from argv for each of its parameters, in order.

    An InputError, or a file that cannot be read or written, is one line on stderr and exit code 1.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    for name in inspect.signature(main).parameters:
        parser.add_argument(name, type=Path)
    arguments = vars(parser.parse_args())
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main(**arguments)
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # an unwritable folder, a full disk
        if error.filename is None:
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}; make sure that it exists and can be written")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
