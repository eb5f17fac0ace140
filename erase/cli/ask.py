"""`erase ask`: a question about images, answered with pruning."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erase.cli.common import (
    add_command,
    add_model_options,
    add_policy_options,
    choose_policy,
    load,
    percent,
    print_json,
    table,
)

if TYPE_CHECKING:
    from erase.cli.question import Asked, Pruned
    from erase.flops import PrefillFlops


def add_to(commands: Any) -> None:
    """Adds the command to the parser's."""
    parser = add_command(
        commands,
        run,
        help="ask a question about one or several images",
        example='erase ask erase/demo/samples/documents.png "What is the fee?"',
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", type=Path, help="picture files")
    parser.add_argument("question", metavar="QUESTION")
    add_model_options(parser)
    add_policy_options(parser)
    parser.add_argument(
        "--max-tokens", type=int, default=128, metavar="N", help="longest answer in tokens (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")


def run(options: argparse.Namespace) -> None:
    """Prints the answer, and on standard error what pruning did."""
    from erase.cli.question import ask, pruned
    from erase.methods import method_for

    loaded = load(options)
    chosen = choose_policy(options, loaded)
    method = method_for(chosen.policy)
    asked = ask(loaded, method, options.images, options.question, options.max_tokens)
    figures = pruned(loaded, method, asked.preselection, asked.vision_tokens)
    flops = figures.flops(loaded.adapter, asked.prompt_tokens)
    if options.json:
        print_json({"model": loaded.name, "policy": chosen.name, **_as_json(asked, figures, flops)})
        return
    print(asked.result.text, flush=True)
    print(f"\n{table(_rows(chosen.name, asked, figures, flops))}", file=sys.stderr)


def _rows(policy: str, asked: Asked, figures: Pruned, flops: PrefillFlops) -> dict[str, str]:
    phases = asked.result.times
    return {
        "vision tokens": f"{figures.tokens} in, {figures.entering} into the decoder, {figures.kept} kept",
        "layer average": f"{figures.layer_average:.1f} vision tokens",
        "retention": _retention_in_words(figures),
        "prefill FLOPs": f"{percent(1 - flops.pruned / flops.unpruned)} saved",
        "policy": policy,
        "time": f"{1000 * asked.total_s:.0f} ms, of these prepare {1000 * asked.prepare_s:.0f}, "
        f"encode {1000 * phases.encode:.0f}, prefill {1000 * phases.prefill:.0f}, decode {1000 * phases.decode:.0f}",
    }


def _retention_in_words(figures: Pruned) -> str:
    final = f"{figures.kept / figures.tokens:.2f} final"
    average = f"{figures.layer_average / figures.tokens:.2f} averaged over layers"
    if figures.requested is None:
        return f"{final}, {average}"
    reached, other = (final, average) if figures.measure == "final" else (average, final)
    return f"asked for {figures.requested:.2f}, reached {reached}; {other}"


def _as_json(asked: Asked, figures: Pruned, flops: PrefillFlops) -> dict[str, Any]:
    result = asked.result
    times = {
        "prepare": asked.prepare_s,
        "encode": result.times.encode,
        "prefill": result.times.prefill,
        "decode": result.times.decode,
        "total": asked.total_s,
    }
    return {
        "answer": result.text,
        "finish_reason": result.finish_reason,
        **figures.as_json(),
        "prefill_flops": {**flops._asdict(), "saved": round(1 - flops.pruned / flops.unpruned, 4)},
        "times_ms": {phase: round(1000 * seconds, 2) for phase, seconds in times.items()},
    }
