"""docs/settings.md is what the settings class says."""

from __future__ import annotations

from pathlib import Path

from worker.settings import Settings, settings_page

ROOT = Path(__file__).parents[2]


def test_the_committed_page_is_current() -> None:
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "run python -m worker.settings > docs/settings.md"


def test_every_setting_has_a_row_with_a_meaning() -> None:
    rows = [line.split("|") for line in settings_page().splitlines() if line.startswith("| `ERASE_")]
    assert [row[1].strip() for row in rows] == [f"`ERASE_{name.upper()}`" for name in Settings.model_fields]
    assert all(len(row) == 5 and row[3].strip() not in ("", "None") for row in rows)
