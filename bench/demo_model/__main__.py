"""The command line: python -m bench.demo_model train, evaluate, export or samples."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from bench.demo_model.recipe import RECIPES

RUN = Path(".erase/demo-model")
_ON_GPU = torch.cuda.is_available()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.demo_model", description="Makes the bundled demo model.")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_train, _add_evaluate, _add_export, _add_samples):
        add(commands)
    arguments = parser.parse_args()
    arguments.run_command(arguments)


def _add_train(commands: Any) -> None:
    parser = commands.add_parser("train", help="train, or go on where the checkpoint ends")
    parser.add_argument("--run", type=Path, default=RUN, help="folder of tokenizer, checkpoint and log (%(default)s)")
    parser.add_argument("--recipe", choices=RECIPES, default="gpu", help="%(default)s")
    parser.add_argument("--minutes", type=float, default=120.0, help="training time over all sessions (%(default)s)")
    parser.add_argument("--device", default="cuda" if _ON_GPU else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw images (%(default)s)")
    parser.add_argument(
        "--checkpoint-minutes", type=float, default=10.0, help="training time between checkpoints (%(default)s)"
    )
    parser.add_argument("--compile", action="store_true", help="compile the layers (needs a C++ compiler)")
    parser.add_argument("--start", type=Path, help="model folder to go on from while there is no checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of the images drawn; another for a model that goes on")
    parser.set_defaults(run_command=_train)


def _train(arguments: argparse.Namespace) -> None:
    from bench.demo_model.train import train

    train(
        arguments.run,
        arguments.recipe,
        arguments.minutes,
        arguments.device,
        arguments.workers,
        seed=arguments.seed,
        compiled=arguments.compile,
        start=arguments.start,
        checkpoint_minutes=arguments.checkpoint_minutes,
    )


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="accuracy by family and image size, as a Markdown table")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--split", default="test", help="train, validation or test (%(default)s)")
    parser.add_argument("--images", type=int, default=40, help="per family and size (%(default)s)")
    parser.add_argument("--device", default="cuda" if _ON_GPU else "cpu")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.set_defaults(run_command=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    from bench.demo_model.evaluate import report

    report(arguments)


def _add_export(commands: Any) -> None:
    parser = commands.add_parser("export", help="write the checkpoint as a model folder")
    parser.add_argument("--run", type=Path, default=RUN, help="folder of the checkpoint (%(default)s)")
    parser.add_argument("--recipe", choices=RECIPES, default="gpu", help="%(default)s")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--shard", default="1GB", help="largest file of weights, like 15MB (%(default)s)")
    parser.set_defaults(run_command=_export)


def _export(arguments: argparse.Namespace) -> None:
    from bench.demo_model.export import export

    export(arguments.run, arguments.out, arguments.recipe, arguments.shard)


def _add_samples(commands: Any) -> None:
    parser = commands.add_parser("samples", help="choose and write the pictures that come with the model")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.set_defaults(run_command=_samples)


def _samples(arguments: argparse.Namespace) -> None:
    from bench.demo_model.samples import bundle

    for family, questions in bundle(arguments.model).items():
        print(f"{family}: {questions} questions")


if __name__ == "__main__":
    main()
