"""`erase inspect`: what pruning sees in an image and does to it, without running a model unless a question is asked."""

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
    print_json,
    table,
)

if TYPE_CHECKING:
    from erase.cli.question import Pruned
    from erase.methods.base import ImageSelection
    from erase.models.prompt import PreparedImage
    from erase.overlay import Fate
    from erase.policy import Policy

LONGEST_ANSWER = 64


def add_to(commands: Any) -> None:
    """Adds the command to the parser's."""
    parser = add_command(
        commands,
        run,
        help="show what pruning sees in an image and drops of it",
        example='erase inspect erase/demo/samples/documents.png "What is the fee?" --overlay overlay.png',
    )
    parser.add_argument("image", metavar="IMAGE", type=Path, help="picture file")
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="run the model, to see stage 2 as well")
    parser.add_argument("--overlay", type=Path, metavar="OUT.png", help="write a picture with the cells marked")
    add_model_options(parser)
    add_policy_options(parser)
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")


def run(options: argparse.Namespace) -> None:
    """Prints a table and maps; loads weights only for a question."""
    from erase.cli.maps import maps
    from erase.cli.question import ask, images_for, pruned
    from erase.methods import method_for
    from erase.overlay import fates

    loaded = load(options, weights=options.question is not None)
    chosen = choose_policy(options, loaded)
    method = method_for(chosen.policy)
    answer = None
    if options.question is None:
        (image,), whole = images_for(loaded, method, [options.image])
        preselection = method.preselect([image.pixels])
        entered = kept = preselection.kept
    else:
        asked = ask(loaded, method, [options.image], options.question, LONGEST_ANSWER)
        (image,), preselection, whole = asked.images, asked.preselection, asked.vision_tokens
        entered, kept = asked.result.entered, asked.result.kept
        answer = asked.result.text
    (selection,) = preselection.images
    figures = pruned(loaded, method, preselection, whole)
    fate = fates(image.tokens, entered.tolist(), kept.tolist())
    if options.overlay is not None:
        _write_overlay(options.overlay, image, fate, asked=answer is not None)
    if options.json:
        names = {"model": loaded.name, "policy": chosen.name}
        print_json(names | _as_json(image, selection, figures, fate, options.question, answer))
        return
    print(table(_rows(chosen.policy, chosen.name, image, selection, figures, answer)))
    columns = image.cell_grid[1]
    drawn = maps(selection.entropy.tolist(), fate, columns, asked=answer is not None, encoding=sys.stdout.encoding)
    print(f"\n{drawn}")


def _rows(
    policy: Policy | None,
    name: str,
    image: PreparedImage,
    selection: ImageSelection,
    figures: Pruned,
    answer: str | None,
) -> dict[str, str]:
    width, height = image.pixel_size
    rows, columns = image.cell_grid
    low, middle, high = _spread(selection)
    described = {
        "image": f"{width} x {height} pixels as the model sees it",
        "vision tokens": f"{image.tokens} ({columns} x {rows} cells of {image.pixels.cell} pixels)",
        "entropy": f"{low:.2f} lowest, {middle:.2f} median, {high:.2f} highest (nats)",
        "complexity": f"{selection.complexity:.2f} nats{_bin_in_words(policy, selection)}",
        "policy": name,
        "stage 1 keeps": f"{len(selection.kept)} of {image.tokens}",
    }
    if image.tokens != figures.tokens:
        described["vision tokens"] += f", made smaller from {figures.tokens}"
    if figures.entering != len(selection.kept):
        described["decoder gets"] = f"{figures.entering} of these"
    for number, cut in enumerate(figures.cuts, 1):
        label = "stage 2 keeps" if len(figures.cuts) == 1 else f"cut {number} keeps"
        described[label] = f"{cut.kept}, after {cut.after_layers} of {len(figures.per_layer)} layers"
    if answer is not None:
        described["answer"] = answer
    return described


def _bin_in_words(policy: Policy | None, selection: ImageSelection) -> str:
    thresholds = getattr(policy, "thresholds", ())
    if selection.bin is None:
        return ""
    bounds = [*thresholds[max(0, selection.bin - 1) : selection.bin + 1]]
    if not bounds:
        words = "the only one"
    elif selection.bin == 0:
        words = f"above {bounds[0]:.2f}"
    elif selection.bin == len(thresholds):
        words = f"up to {bounds[-1]:.2f}"
    else:
        words = f"above {bounds[1]:.2f}, up to {bounds[0]:.2f}"
    return f": bin {selection.bin + 1} of {len(thresholds) + 1} ({words})"


def _spread(selection: ImageSelection) -> tuple[float, float, float]:
    entropy = selection.entropy
    return float(entropy.min()), float(entropy.median()), float(entropy.max())


def _write_overlay(path: Path, image: PreparedImage, fate: list[Fate], *, asked: bool) -> None:
    from PIL import Image

    from erase.errors import InputError
    from erase.overlay import Fate, overlay

    tiles = image.pixels.tiles  # (T, 3, H, W), shown one below the other
    picture = Image.fromarray(tiles.permute(0, 2, 3, 1).reshape(-1, tiles.shape[3], 3).contiguous().numpy())
    labels = None if asked else {Fate.KEPT: "kept by stage 1", Fate.DROPPED_BEFORE: "dropped by stage 1"}
    try:
        overlay(picture, image.cell_grid[1], fate, labels).save(path)
    except ValueError as error:
        raise InputError(f"cannot write a picture to {path}: {error}") from error


def _as_json(
    image: PreparedImage,
    selection: ImageSelection,
    figures: Pruned,
    fate: list[Fate],
    question: str | None,
    answer: str | None,
) -> dict[str, Any]:
    columns = image.cell_grid[1]
    low, middle, high = _spread(selection)
    return {
        "image": {"width": image.pixel_size[0], "height": image.pixel_size[1], "cell": image.pixels.cell},
        "complexity": round(selection.complexity, 4),
        "bin": None if selection.bin is None else selection.bin + 1,
        "entropy": {"lowest": round(low, 4), "median": round(middle, 4), "highest": round(high, 4)},
        **figures.as_json(),
        "question": question,
        "answer": answer,
        "entropy_map": _rows_of([round(value, 4) for value in selection.entropy.tolist()], columns),
        "pruning_map": _rows_of([int(one) for one in fate], columns),
    }


def _rows_of(values: list[Any], columns: int) -> list[list[Any]]:
    return [values[at : at + columns] for at in range(0, len(values), columns)]
