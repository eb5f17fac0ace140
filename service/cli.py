"""The command `erase-serve`: run the whole stack, or one part of it, and make API keys."""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import sys
from pathlib import Path

PARTS = {"service": "the HTTP service", "worker": "a worker with its model"}
"""Parts that run as `python -m PART`; this process becomes the part."""


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand. Returns 0 on success, 1 when something failed while running, 2 when it could not start."""
    options = _parser().parse_args(arguments)
    if options.command in PARTS:
        os.execv(sys.executable, [sys.executable, "-m", options.command])  # noqa: S606
    if options.command == "key":
        return _make_key(options.name)
    from service.stack import run_stack

    return run_stack(Path(options.state), ask=not options.no_ask)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="erase-serve",
        description="Serve a vision-language model whose redundant image tokens are pruned.",
        epilog="Settings are environment variables ERASE_*; docs/settings.md lists them.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="run Redis, worker and service on this machine and ask a first question")
    up.add_argument("--state", default=".erase", help="folder for Redis' data and the logs (default: %(default)s)")
    up.add_argument("--no-ask", action="store_true", help="do not ask the bundled question")
    for part, meaning in PARTS.items():
        commands.add_parser(part, help=f"run {meaning} only")
    key = commands.add_parser("key", help="make an API key and the ERASE_API_KEYS entry that admits it")
    key.add_argument("name", help="owner of the key, for example a product backend's name")
    return parser


def _make_key(name: str) -> int:
    if not name.replace("-", "").replace("_", "").isalnum():
        print("erase-serve: a name has letters, digits, - and _ only", file=sys.stderr)
        return 2
    key = f"erase_{secrets.token_urlsafe(32)}"
    print(f"key (give it to the client, it is not stored): {key}")
    print(f"ERASE_API_KEYS={name}:{hashlib.sha256(key.encode()).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
