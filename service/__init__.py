"""The HTTP front: takes images and questions, accepts them in the ledger, and hands the answers back.

Of our own code it imports only the light modules of `worker` (contract, ledger, settings, logs, failpoints, wakeups):
never torch, transformers or erase, so that a service process is small and starts in a moment.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("erase-serve")
except PackageNotFoundError:
    __version__ = "0.0.0"
