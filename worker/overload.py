"""Under overload the deployment may prune more than usual, within bounds that the operator sets. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_FLOOR_AT = 4.0


@dataclass(frozen=True)
class LoadAdaptation:
    """Lowers the default retention while requests wait longer than they should.

    Attributes:
        floor: the retention that is never undercut; None turns it off.
        wait_s: seconds that a request may wait before anything changes; at four times as many the floor is reached.
    """

    floor: float | None
    wait_s: float

    def retention(self, usual: float, waited_s: float) -> float:
        """The retention to use for a request that waited so long, as seldom as possible other than the usual one."""
        if self.floor is None or self.floor >= usual or waited_s <= self.wait_s:
            return usual
        over = (waited_s / self.wait_s - 1) / (_FLOOR_AT - 1)
        return max(self.floor, round(usual - (usual - self.floor) * over, 4))
