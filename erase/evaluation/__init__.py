"""What pruning costs in accuracy: methods, retentions and data sets, asked through the engine."""

from erase.evaluation.answers import Part
from erase.evaluation.contestants import Contest, Contestant, contest
from erase.evaluation.run import Step, evaluate
from erase.evaluation.summary import Summary, summarise
from erase.evaluation.tables import load_table

__all__ = ["Contest", "Contestant", "Part", "Step", "Summary", "contest", "evaluate", "load_table", "summarise"]
