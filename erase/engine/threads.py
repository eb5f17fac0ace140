"""How many OpenMP threads the tensor operations of one thread use.

Every thread that uses more than one keeps a pool of them, and while a process has several pools, libgomp lets their
threads fall asleep at once: small products then take twice as long. So only whoever computes should have one.
"""

from __future__ import annotations

import torch


def use_threads(count: int) -> None:
    """Give this thread so many from now on; it is also what threads begin with that start later."""
    torch.get_num_threads()  # at its first use a thread takes the process' number, over what was set before
    torch.set_num_threads(count)
