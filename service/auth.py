"""Who asks: an API key stands for an owner; without configured keys everybody is `anonymous`."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from service.problems import UnauthorizedError

ANONYMOUS = "anonymous"


class ApiKeys:
    """The configured keys, known by their SHA-256 only."""

    def __init__(self, owners: Mapping[str, str]) -> None:
        """`owners`: SHA-256 of a key (hex) -> its owner."""
        self._owners = dict(owners)

    def owner(self, key: str | None) -> str:
        """Name of the key's owner. Raises `UnauthorizedError`. Takes the same time whichever key it is."""
        if not self._owners:
            return ANONYMOUS
        digest = hashlib.sha256((key or "").encode()).hexdigest()
        found = None
        for known, name in self._owners.items():
            if hmac.compare_digest(digest, known):
                found = name
        if found is None or not key:
            raise UnauthorizedError("Send a valid API key: Authorization: Bearer KEY.")
        return found
