"""Flask's extensions, without an app; ``create_app`` and ``api.init_app`` bind them."""

from __future__ import annotations

from flask_cors import CORS
from flask_jwt_extended import JWTManager
from flask_migrate import Migrate  # type: ignore[import-untyped]
from flask_sqlalchemy import SQLAlchemy

from .db.models import Base

# ``model_class=Base`` would make a copy of Base, which SQLAlchemy refuses for its type_annotation_map;
# models inherit from Base itself, so its tables are all that is needed here.
# What a transaction returned stays readable after its commit, without another SELECT.
db = SQLAlchemy(metadata=Base.metadata, session_options={"expire_on_commit": False})
migrate = Migrate()
jwt = JWTManager()
cors = CORS()
