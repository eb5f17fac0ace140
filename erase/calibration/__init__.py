"""Finding the complexity bins of revision 1 for a model, on questions with known answers (arXiv 2605.09982).

`search` knows points, policies and the objective and runs nothing; `progress` remembers on disk; `answers` asks the
model; `run` puts them together.
"""

from erase.calibration.run import Calibration, Step, calibrate
from erase.calibration.search import Search

__all__ = ["Calibration", "Search", "Step", "calibrate"]
