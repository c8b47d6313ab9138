"""The command line, and the one place where errors become messages.

A file of this folder is a command, imported when it is called. Files whose name begins with an underscore hold what commands share:
_options, _models, _loading, _machine, _sampling, _grammar, _answers and _probabilities are options with what belongs to them, _addresses,
_serving and _chats those of the server alone; _streams and _bar are what is read and written, _bench_table and _probs_page what two
commands print. _llama/ has the table of llama.cpp's options, and reads start lines by it.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys

import click

from .. import __version__
from ..errors import QwenError
from ._streams import printable

WELCOME = """\
qwencli runs Qwen models from GGUF files on this machine's CPU.

  qwencli chat                                  talk to a model
  qwencli run -p "Once upon a time"             have one prompt answered
  qwencli pull bartowski/Qwen_Qwen3-0.6B-GGUF   fetch a model (0.5 GB)
  qwencli list                                  see which models are here

-m MODEL takes a file, a folder or a name like the one above. Without it the
model is $QWENCLI_MODEL, the one in ./models, or a small built-in demo.

  qwencli --help        all commands
  qwencli run --help    all options of one
"""


class CommandFolder(click.Group):
    """A group whose commands are the modules of this package: `info.py` defines the command `info` under that name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = getattr(importlib.import_module(f".{cmd_name}", __name__), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = self.list_commands(ctx)
        if args[0] not in names and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], names)
            ctx.fail(
                f"No such command {args[0]!r}." + (f" Did you mean {' or '.join(near)}?" if near else "")
            )
        return super().resolve_command(ctx, args)


@click.command(
    cls=CommandFolder,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog='Try:  qwencli run -p "Once upon a time"',
)
@click.version_option(__version__, prog_name="qwencli")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run Qwen models from GGUF files on this machine's CPU."""
    if ctx.invoked_subcommand is None:
        at_terminal = sys.stdout.isatty()
        click.echo(WELCOME if at_terminal else ctx.get_help(), nl=not at_terminal)
        ctx.exit(0 if at_terminal else 2)


def main(args: list[str] | None = None) -> int:
    """Run a command line (by default the process's own) and return the exit code: 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    _open_missing_streams()
    try:
        code = cli.main(args, prog_name="qwencli", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except click.UsageError as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except QwenError as error:
        return _fail(str(error))
    except MemoryError:
        return _fail("not enough memory")
    except OSError as error:
        return _fail(f"{error.filename or 'output'}: {error.strerror or error}")


def _open_missing_streams() -> None:
    """If the caller closed a standard stream, Python has None for it, which has no methods and makes `print` write to stdout."""
    for name, mode in ("stdin", "r"), ("stdout", "w"), ("stderr", "w"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _fail(message: str) -> int:
    if len(message) > 1000:  # a value from a damaged file may be of any length
        message = f"{message[:700]} ... {message[-200:]}"
    print(f"qwencli: error: {printable(message)}", file=sys.stderr)
    return 1
