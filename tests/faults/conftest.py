"""Deployments that faults are done to."""

from tests.system.conftest import make_deployment as make_deployment
