"""Dependencies of the routes that need an API key: who calls, what it may do, and whether it may do it now."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.auth import Caller, KeyRing
from service.runtime import Process
from worker.settings import Scope

_bearer = HTTPBearer(auto_error=False, description="API key; needed if the deployment has keys configured")


def _caller_with(*scopes: Scope, lasting: bool = False) -> Callable[..., AsyncIterator[Caller]]:
    """Dependency: the caller; a request that may last counts while it is answered.

    It raises `UnauthorizedError`, `ForbiddenError` or `TooManyRequestsError`.
    """

    async def get_caller(
        request: Request,
        runtime: Process,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    ) -> AsyncIterator[Caller]:
        keys: KeyRing = request.app.state.keys
        caller = keys.caller(credentials.credentials if credentials else None)
        request.scope["erase.owner"] = caller.owner
        caller.need(frozenset(scopes))
        with runtime.admission.request(caller) if lasting else nullcontext():
            yield caller

    return get_caller


Asker = Annotated[Caller, Depends(_caller_with(Scope.ASK, lasting=True))]
Watcher = Annotated[Caller, Depends(_caller_with(Scope.ASK, Scope.ADMIN, lasting=True))]
JobsCaller = Annotated[Caller, Depends(_caller_with(Scope.ASK, Scope.ADMIN))]
AnyCaller = Annotated[Caller, Depends(_caller_with(*Scope))]
MetricsReader = Annotated[Caller, Depends(_caller_with(Scope.METRICS, Scope.ADMIN))]
