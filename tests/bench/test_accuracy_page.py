"""The figures of the pages about accuracy are those of the measured tables."""

import json
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FIGURE = re.compile(
    r"^(?:(?P<name>[A-Za-z ]+) )?(?P<value>[\d.]+) \((?P<low>[\d.]+) to (?P<high>[\d.]+)\)(?:, at [\d.]+)?$"
)
NAMES = {
    "random tokens": "random",
    "downsampling": "downsample",
    "distinct": "erase-distinct",
    "revision 2 of the paper, exact scoring": "erase-2-exact",
    "revision 1 of the paper": "erase-1",
}
BOTH = [("final", 0.15), ("layer_average", 0.15)]
RETENTIONS = [("layer_average", target) for target in (0.5, 0.25, 0.15, 0.1)]
TABLES = [
    ("docs/accuracy.md", "| | equal final retention 0.15 |", "headline", BOTH, 10),
    ("docs/accuracy.md", "| pruned | 50% |", "retentions", RETENTIONS, 14),
    ("docs/accuracy.md", "| 576 vision tokens | equal final", "576-tokens", BOTH, 12),
    ("docs/accuracy.md", "| 144 vision tokens | equal final", "144-tokens", BOTH, 11),
    ("README.md", "| | at equal final retention |", "headline", BOTH, 6),
]


def rows_below(page: str, heading: str) -> list[list[str]]:
    """The cells of a table's rows, without its head, bold type and code quotes."""
    lines = (REPOSITORY / page).read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(heading))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.replace("*", "").replace("`", "").strip("|").split("|")])
    return rows


def measured(table: str) -> dict[tuple[str, str, float], dict]:
    lines = json.loads((REPOSITORY / "docs/accuracy" / f"{table}.json").read_text())["lines"]
    return {(line["name"], line["measure"], line["target"]): line for line in lines}


def absent(table: str) -> set[tuple[str, str, float]]:
    by_contest = json.loads((REPOSITORY / "docs/accuracy" / f"{table}.json").read_text())["absent"]
    contests = ((contest.rpartition(" "), names) for contest, names in by_contest.items())
    return {(name, measure, float(target)) for (measure, _, target), names in contests for name in names}


def name_of(written: str) -> str:
    short = written.partition(",")[0]
    return NAMES.get(written) or NAMES.get(short) or short.lower()


@pytest.mark.parametrize(("page", "heading", "table", "columns", "count"), TABLES)
def test_retained_scores_are_the_measured_ones(page, heading, table, columns, count):
    found = measured(table)
    rows = rows_below(page, heading)
    assert len(rows) == count
    for row in rows:
        for cell, column in zip(row[1:], columns, strict=True):
            if cell == "cannot":
                place = (name_of(row[0]), *column)
                assert place in absent(table) or found[place][column[0]] > column[1] + 0.01, row
                continue
            figure = FIGURE.match(cell)
            assert figure, cell
            retained = found[name_of(figure["name"] or row[0]), *column]["retained"]
            for part in ("value", "low", "high"):
                digits = len(figure[part].partition(".")[2])
                assert figure[part] == f"{100 * retained[part]:.{digits}f}", (row[0], column, part)


def test_best_other_methods_are_the_best():
    found = measured("headline")
    for page, heading in (TABLES[0][:2], TABLES[-1][:2]):
        (best,) = (row for row in rows_below(page, heading) if "best other method" in row[0])
        for cell, column in zip(best[1:], BOTH, strict=True):
            others = {
                name: line["retained"]["value"]
                for (name, *of), line in found.items()
                if tuple(of) == column and not name.startswith("erase-")
            }
            assert cell.lower().startswith(max(others, key=lambda name: others[name]))


def test_scores_on_images_of_another_renderer_are_the_measured_ones():
    found = measured("other-renderer")
    rows = rows_below("docs/accuracy.md", "| | retained | layer average | stays right |")
    assert len(rows) == 9
    for name, retained, layer_average, stays_right in rows:
        line = found[name_of(name), "layer_average", 0.15]
        value, low, high = (100 * line["retained"][part] for part in ("value", "low", "high"))
        assert retained == f"{value:.1f} ({low:.0f} to {high:.0f})", name
        assert layer_average == f"{line['layer_average']:.3f}", name
        assert stays_right == f"{100 * line['stays_right']:.1f}", name
