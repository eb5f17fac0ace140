"""What the commands share: options, the choice of a policy, tables, and silence."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from erase.policy import Policy

if TYPE_CHECKING:
    from erase.models.loading import LoadedModel

AUTO, NONE = "auto", "none"


class UsageError(Exception):
    """Arguments that contradict each other."""


@dataclass(frozen=True)
class ChosenPolicy:
    """The policy that a command runs with, under the name that the user knows; None prunes nothing."""

    name: str
    policy: Policy | None


def add_command(commands: Any, run: Any, *, example: str, **settings: Any) -> argparse.ArgumentParser:
    """A command's parser; its help ends with the example."""
    parser: argparse.ArgumentParser = commands.add_parser(
        run.__module__.rpartition(".")[2],
        description=settings["help"],
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **settings,
    )
    parser.set_defaults(run=run)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--model, --revision, --device, --dtype."""
    parser.add_argument("--model", default="demo", help="demo, a folder, or a hub id ORG/NAME (default: %(default)s)")
    parser.add_argument("--revision", help="40-digit commit of a hub model")
    parser.add_argument("--device", default=AUTO, help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--dtype", default=AUTO, help="auto, float32, bfloat16 or float16 (default: %(default)s)")


def add_policy_options(parser: argparse.ArgumentParser) -> None:
    """--policy and --retention."""
    parser.add_argument(
        "--policy",
        default=AUTO,
        help="auto, none, the model's own (NAME, NAME-bins), a preset's name or a policy file (default: %(default)s)",
    )
    parser.add_argument(
        "--retention", type=float, metavar="R", help="replaces the policy's dial, above 0 and at most 1"
    )


def load(options: argparse.Namespace, *, weights: bool = True) -> LoadedModel:
    """The model that the options name."""
    from erase.models.loading import load_model

    return load_model(
        options.model, revision=options.revision, device=options.device, dtype=options.dtype, weights=weights
    )


def choose_policy(options: argparse.Namespace, loaded: LoadedModel) -> ChosenPolicy:
    """What --policy and --retention mean for a model: the same as ERASE_POLICY and ERASE_RETENTION in the service.

    Raises:
        UsageError: a retention without pruning.
        PolicyError: `--policy` names nothing known and no readable policy file, or the retention is out of its range.
    """
    from erase.models.policies import find_policy

    name, retention = options.policy, options.retention
    if name == NONE:
        if retention is not None:
            raise UsageError("--retention has no meaning with --policy none: leave one of them out")
        return ChosenPolicy(NONE, None)
    if name == AUTO:
        name = loaded.default_policy
    policy = find_policy(name, loaded, also=(AUTO, NONE))
    return ChosenPolicy(name, policy if retention is None else policy.with_retention(retention))


def table(rows: Mapping[str, str]) -> str:
    """Labels and values, one pair a line."""
    width = max(map(len, rows))
    return "\n".join(f"  {label:<{width}}  {value}" for label, value in rows.items())


def print_json(data: Mapping[str, Any]) -> None:
    """To standard output, for programs."""
    print(json.dumps(data, indent=2))


def percent(fraction: float) -> str:
    """A fraction as people read it."""
    return f"{100 * fraction:.0f}%"


@contextmanager
def quietly() -> Iterator[None]:
    """Inside, libraries show neither bars nor warnings, and failures only through the error that ends the command."""
    from transformers.utils import logging as theirs

    verbosity, bars, ours = theirs.get_verbosity(), theirs.is_progress_bar_enabled(), logging.getLogger("erase")
    level = ours.level
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    ours.setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        try:
            yield
        finally:
            theirs.set_verbosity(verbosity)
            ours.setLevel(level)
            if bars:
                theirs.enable_progress_bar()
