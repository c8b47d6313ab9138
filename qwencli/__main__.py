"""`python -m qwencli` and the `qwencli` command."""
import sys


def main() -> None:
    """Run the command line and exit."""
    try:
        from . import cli
        code = cli.main()
    except KeyboardInterrupt:  # during the imports
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
