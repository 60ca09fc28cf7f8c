"""What all tables have in common: their names for constraints, and the types of their columns."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Integer, MetaData, Uuid
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase

from .engine import UtcDateTime

# SQLite takes AUTOINCREMENT for INTEGER PRIMARY KEY only. Without it the id of the account that was
# purged last would come again.
Id = BigInteger().with_variant(Integer, "sqlite")

_Json = JSON().with_variant(JSONB, "postgresql")


class Base(DeclarativeBase):
    """The tables, with the names of constraints and indexes that the migrations give them too."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own protocol
        datetime: UtcDateTime,
        uuid.UUID: Uuid,
        dict[str, Any]: _Json,
    }
