"""The command `erase-serve`: run the whole stack, or one part of it, and make API keys."""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import sys
from pathlib import Path

from pydantic import ValidationError

from worker.contract import JobState
from worker.settings import Scope, SettingsError, is_owner, load_settings

PARTS = {"service": "the HTTP service", "worker": "a worker with its model"}
"""Parts that run as `python -m PART`; this process becomes the part."""


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand. Returns 0 on success, 1 when something failed while running, 2 when it could not start."""
    options = _parser().parse_args(arguments)
    if options.command in PARTS:
        os.execv(sys.executable, [sys.executable, "-m", options.command])  # noqa: S606
    if options.command in ("jobs", "config"):
        return _with_settings(options)
    if options.command == "key":
        return _make_key(options.name, options.scope)
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
    jobs = commands.add_parser("jobs", help="list, show, requeue and drop jobs of the ledger")
    jobs.add_argument(
        "--stack",
        help="state folder of a running `erase-serve up` (default: ERASE_REDIS_URL, or the stack in .erase)",
    )
    _add_job_actions(jobs)
    config = commands.add_parser("config", help="check the settings")
    config.add_argument("--stack", help="state folder of a running `erase-serve up`, as for jobs")
    config.add_argument("action", choices=["check"], help="say what is wrong, and what the settings amount to")
    key = commands.add_parser("key", help="make an API key and the ERASE_API_KEYS entry that admits it")
    key.add_argument("name", help="owner of the key, for example a product backend's name")
    key.add_argument(
        "--scope", action="append", choices=list(Scope), help="what it may do; may be repeated (default: ask)"
    )
    return parser


def _add_job_actions(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show_all = actions.add_parser("list", help="dead letters, open jobs, or all jobs of an owner")
    show_all.add_argument("--state", choices=["open", *JobState], help="only these; without --owner open or dead")
    show_all.add_argument("--owner", help="all kept jobs of this owner, newest first")
    show_all.add_argument("--limit", type=int, default=100, help="at most so many (default: %(default)s)")
    show_all.add_argument("--json", action="store_true", help="one JSON object a line")
    one = actions.add_parser("show", help="everything known of a job but its prompt and its answer's text")
    one.add_argument("job", help="its id")
    one.add_argument("--text", action="store_true", help="show prompt and answer, too")
    again = actions.add_parser("requeue", help="ask dead letters again, under the same id")
    again.add_argument("job", nargs="*", help="ids; none with --all")
    again.add_argument("--all", action="store_true", help="every dead letter")
    again.add_argument("--timeout-s", type=float, help="their new deadline (default: ERASE_MAX_TIMEOUT_S)")
    forget = actions.add_parser("drop", help="forget jobs: open ones are cancelled, the rest is deleted")
    forget.add_argument("job", nargs="+", help="ids")


def _with_settings(options: argparse.Namespace) -> int:
    try:
        settings = load_settings()
    except SettingsError as error:
        print(f"erase-serve: {error}", file=sys.stderr)
        return 2
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from service import config_check, jobs_command
    from service.stack import find_redis

    url = find_redis(settings, Path(options.stack) if options.stack else None)
    if url is None and options.stack:
        print(f"erase-serve: no stack runs in {options.stack}", file=sys.stderr)
        return 2
    if options.command == "config":
        return config_check.check(settings, url)
    if url is None:
        print("erase-serve: set ERASE_REDIS_URL, or name the folder of a running stack with --stack", file=sys.stderr)
        return 2
    try:
        # No retries: a command that took effect although its reply was lost must not be told as refused.
        retry = Retry(NoBackoff(), 0)
        with redis.Redis.from_url(url, socket_timeout=10, socket_connect_timeout=3, retry=retry) as client:
            return jobs_command.run(options, settings, client)
    except ValidationError:
        print("erase-serve: a job was written by a version that this one does not know", file=sys.stderr)
    except redis.RedisError as error:
        print(f"erase-serve: the Redis of the deployment cannot be used: {error}", file=sys.stderr)
    except ValueError:
        print("erase-serve: the Redis of the deployment cannot be used: its URL cannot be read", file=sys.stderr)
    return 1


def _make_key(name: str, scopes: list[str] | None) -> int:
    if not is_owner(name):
        print("erase-serve: a name has letters, digits, and - _ . only", file=sys.stderr)
        return 2
    key = f"erase_{secrets.token_urlsafe(32)}"
    print(f"key (give it to the client, it is not stored): {key}")
    more = f":{'+'.join(sorted(set(scopes)))}" if scopes else ""
    print(f"ERASE_API_KEYS={name}:{hashlib.sha256(key.encode()).hexdigest()}{more}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
