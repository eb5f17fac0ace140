"""An evaluation for people: a Markdown table per contest, and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from erase.evaluation.summary import ALL, Line, Retained, Summary, label
from erase.policy import Measure

_TITLES = {"final": "final retention", "layer_average": "layer-averaged retention"}
_OURS = "erase"
_OUR_COLOUR, _OTHERS_COLOUR = "#c0392b", "#34608c"
_MARKERS = "sv^<>dpX*h"


def write_report(folder: Path, summary: Summary, about: dict[str, Any]) -> None:
    """Writes results.json, results.md and results.png (if matplotlib is installed) into the folder."""
    data = {"about": about, **asdict(summary)}
    (folder / "results.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(markdown(summary), encoding="utf-8")
    plot(summary, folder / "results.png")


def markdown(summary: Summary) -> str:
    """One table per contest, the best first."""
    groups = [group for group in summary.unpruned if group != ALL]
    shares = ", ".join(f"{group} {100 * summary.unpruned[group]:.1f}%" for group in groups)
    text = [
        f"{summary.questions} questions about {summary.images} images. Unpruned score: "
        f"{100 * summary.unpruned[ALL]:.1f}%{f' ({shares})' if shares else ''}.",
        "In the tables: score in % of the unpruned one on the same questions, with 95% intervals (images resampled).",
        "Stays right: the same without what is won on questions that the unpruned model gets wrong. "
        "Evidence kept: of the vision tokens in which the answer stands, % that are left at the end.",
    ]
    for measure, target in dict.fromkeys((line.measure, line.target) for line in summary.lines):
        lines = [line for line in summary.lines if (line.measure, line.target) == (measure, target)]
        text.append(f"### {_TITLES[measure].capitalize()} {target:g} ({100 * (1 - target):g}% pruned)")
        text.append(_table(sorted(lines, key=lambda line: -line.retained.value), groups, summary.against))
        absent = summary.absent.get(label(measure, target), {})
        text += [f"Not here: {name}, {why}." for name, why in absent.items()]
    return "\n\n".join(text) + "\n"


def _table(lines: Sequence[Line], groups: Sequence[str], against: str) -> str:
    compared = any(line.difference is not None for line in lines)
    minus = [f"minus {against}"] if compared else []
    header = ["method", "retained", "95%", *minus, "stays right", "final", "layer average", "evidence kept", *groups]
    rows = [
        [
            line.name,
            _percent(line.retained.value),
            _between(line.retained),
            *([_difference(line)] if compared else []),
            _percent(line.stays_right),
            f"{line.final:.3f}",
            f"{line.layer_average:.3f}",
            "" if line.evidence is None else _percent(line.evidence),
            *(_percent(line.by_group[group].value) for group in groups),
        ]
        for line in lines
    ]
    dashes = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, dashes, *rows))


def _difference(line: Line) -> str:
    return "" if line.difference is None else f"{100 * line.difference.value:+.1f} ({_between(line.difference)})"


def _between(found: Retained) -> str:
    return f"{_percent(found.low)} to {_percent(found.high)}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def plot(summary: Summary, file: Path) -> bool:
    """What is retained, and the evidence kept, by method; False without matplotlib, or without a method.

    With several retentions, curves over them; with one, a row per method, the best on top.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    measures: list[Measure] = [
        measure for measure in ("final", "layer_average") if any(line.measure == measure for line in summary.lines)
    ]
    if not measures:
        return False
    single = len({line.target for line in summary.lines}) == 1
    draw = _draw_rows if single else _draw_curves
    figure = draw(Figure, summary, measures)
    figure.savefig(file, dpi=110)
    return True


def _draw_rows(new_figure: Any, summary: Summary, measures: Sequence[Measure]) -> Any:
    """A column per measure; a row per method with its score, its interval and the evidence that it keeps."""
    most = max(sum(line.measure == measure for line in summary.lines) for measure in measures)
    figure = new_figure(figsize=(6.2 * len(measures), 1.6 + 0.3 * most), layout="constrained")
    axes = figure.subplots(1, len(measures), squeeze=False)[0]
    for measure, axis in zip(measures, axes, strict=True):
        lines = [line for line in summary.lines if line.measure == measure]
        lines.sort(key=lambda line: line.retained.value)
        for row, line in enumerate(lines):
            colour = _OUR_COLOUR if line.name.startswith(_OURS) else _OTHERS_COLOUR
            value = 100 * line.retained.value
            axis.errorbar([value], [row], xerr=[_below([line]), _above([line])], color=colour, marker="o", capsize=3)
            if line.evidence is not None:
                axis.plot([100 * line.evidence], [row], color=colour, marker="|", markersize=9, linestyle="none")
        axis.set_yticks(range(len(lines)), [line.name for line in lines])
        axis.axvline(100, color="grey", linewidth=0.8)
        axis.grid(visible=True, axis="x", alpha=0.3)
        axis.set_title(f"{_TITLES[measure]} {lines[0].target:g}")
        axis.set_xlabel("dot: score, % of the unpruned model's, with 95% interval\nbar: evidence kept, %")
    return figure


def _draw_curves(new_figure: Any, summary: Summary, measures: Sequence[Measure]) -> Any:
    """A column per measure; scores over retentions, and below the evidence kept where it is known."""
    from matplotlib import colormaps

    palette = colormaps["tab20"]
    known = any(line.evidence is not None for line in summary.lines)
    figure = new_figure(figsize=(6.2 * len(measures) + 2.2, 8.6 if known else 5.2), layout="constrained")
    grid = figure.subplots(2 if known else 1, len(measures), squeeze=False, sharey="row")
    names = sorted({line.name for line in summary.lines}, key=lambda name: (not name.startswith(_OURS), name))
    targets = sorted({line.target for line in summary.lines})
    for column, measure in enumerate(measures):
        for number, name in enumerate(names):
            lines = [line for line in summary.lines if (line.measure, line.name) == (measure, name)]
            lines.sort(key=lambda line: line.target)
            ours = name.startswith(_OURS)
            style: dict[str, Any] = {
                "label": name,
                "color": f"C{number}" if ours else palette(number % palette.N),
                "linestyle": "-" if ours else "--",
                "linewidth": 2.4 if ours else 1.2,
                "marker": "o" if ours else _MARKERS[number % len(_MARKERS)],
                "markersize": 6 if ours else 4,
            }
            if lines:
                grid[0, column].errorbar(
                    [line.target for line in lines],
                    [100 * line.retained.value for line in lines],
                    yerr=[_below(lines), _above(lines)] if ours else None,
                    capsize=3 if ours else 0,
                    **style,
                )
            seen = [line for line in lines if line.evidence is not None]
            if seen:
                shares = [100 * (line.evidence or 0.0) for line in seen]
                grid[1, column].plot([line.target for line in seen], shares, **style)
        for axis in grid[:, column]:
            axis.set_xscale("log")
            axis.set_xticks(targets, [f"{target:g}" for target in targets])
            axis.minorticks_off()
            axis.grid(visible=True, alpha=0.3)
        grid[0, column].axhline(100, color="grey", linewidth=0.8)
        grid[-1, column].set_xlabel(_TITLES[measure])
    grid[0, 0].set_ylabel("score, % of the unpruned model's")
    if known:
        grid[1, 0].set_ylabel("evidence kept, %")
    grid[0, -1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _below(lines: Sequence[Line]) -> list[float]:
    return [100 * _gap(line.retained.value, line.retained.low) for line in lines]


def _above(lines: Sequence[Line]) -> list[float]:
    return [100 * _gap(line.retained.high, line.retained.value) for line in lines]


def _gap(high: float, low: float) -> float:
    return max(0.0, high - low)
