"""Question-answer images from a seed: what the demo model learns from, and what pruning is measured on."""

from erase.synthetic.generate import FAMILIES, METRICS, SPLITS, VERSION, random_size, sample
from erase.synthetic.sample import Box, Mark, Question, Sample

__all__ = ["FAMILIES", "METRICS", "SPLITS", "VERSION", "Box", "Mark", "Question", "Sample", "random_size", "sample"]
