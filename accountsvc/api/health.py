"""What an operator's machines ask."""

from __future__ import annotations

from apiflask import APIBlueprint

from . import schemas

health = APIBlueprint("health", __name__, tag="Health")


@health.get("/healthz")
@health.output(schemas.Health)
def healthz() -> dict[str, str]:
    """Say that this process lives; nothing else is looked at"""
    return {"status": "ok"}
