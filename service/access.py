"""Dependency of every route that needs an API key."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.auth import ApiKeys

_bearer = HTTPBearer(auto_error=False, description="API key; needed if the deployment has keys configured")


async def get_owner(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> str:
    """Owner of the request's key. Raises `UnauthorizedError`."""
    keys: ApiKeys = request.app.state.keys
    return keys.owner(credentials.credentials if credentials else None)


Owner = Annotated[str, Depends(get_owner)]
