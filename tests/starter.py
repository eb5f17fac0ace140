"""A small real model for tests: fast, and the same whatever model is bundled."""

from pathlib import Path

STARTER = Path(__file__).parent / "data" / "starter-model"
