"""`python -m qwencli` and the `qwencli` command."""

import os
import sys
from contextlib import suppress


def main() -> None:
    """Run the command line and exit."""
    try:
        from . import cli

        code = cli.main()
    except KeyboardInterrupt:  # during the imports
        code = 130
    sys.exit(code)


def console() -> None:
    """The installed command: `main`, and then the end at once: taking interpreter, vocabulary and threads apart takes 0.15 s."""
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        for stream in sys.stdout, sys.stderr:
            with suppress(AttributeError, OSError, ValueError):  # closed, or nobody reads it
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    console()
