"""The command `erase`: ask, look at pruning, calibrate, evaluate, make images. Only a command imports torch."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from erase import EraseError, __version__
from erase.cli import ask, calibrate, evaluate, inspect, synthesize
from erase.cli.common import UsageError, quietly
from erase.errors import EngineError

FAILED, MISUSED, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0, 1 when something cannot be done, 2 for wrong usage, 130 after Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what the terminal cannot show must not end a command
    try:
        options = parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    try:
        with quietly():
            options.run(options)
        sys.stdout.flush()
    except UsageError as error:
        return _complain(options.command, error, MISUSED)
    except EngineError as error:
        return _complain(options.command, error.whole, FAILED)
    except EraseError as error:
        return _complain(options.command, error, FAILED)
    except BrokenPipeError:  # whoever reads, `head` perhaps, has seen enough; let the flush at exit not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return _complain(options.command, f"{error.filename}: {error.strerror}" if error.filename else error, FAILED)
    except KeyboardInterrupt:
        return _complain(options.command, "interrupted", INTERRUPTED)
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="erase", description="Prune the redundant vision tokens of vision-language models, with ERASE."
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_CommandParser)
    for command in (ask, inspect, calibrate, evaluate, synthesize):
        command.add_to(commands)
    return top


class _CommandParser(argparse.ArgumentParser):
    """Options may stand between positional arguments, as in `inspect page.png --overlay out.png "what is page ?"`."""

    _inside = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._inside:
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


def _complain(command: str, what: object, code: int) -> int:
    print(f"erase {command}: {' '.join(str(what).split())}", file=sys.stderr)
    return code
