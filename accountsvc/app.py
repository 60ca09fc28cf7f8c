"""The composition root, which makes the Flask application of its parts and does nothing else."""

from __future__ import annotations

from apiflask import APIFlask

from . import __version__, api, cli, logs, pages, web
from .config import Settings, load_settings
from .db.engine import engine_options, prepare_engine
from .db.schema import ensure_folder, migrations_path
from .monitoring import metrics
from .services import build_services
from .web import db, migrate


def create_app(settings: Settings | None = None) -> APIFlask:
    """Make the application; connect to nothing yet.

    Makes the folder of a SQLite file, and sends this process's logs to stdout. *settings* default
    to the environment's. Raises ConfigError, with one line for a wrong setting.
    """
    settings = settings or load_settings()
    app = APIFlask(
        "accountsvc",
        title="accountsvc",
        version=__version__,
        spec_path="/api/openapi.json",
        docs_path=None,
        instance_path=str(settings.instance_path),
        # By default Flask would serve whatever file lies in a folder ``static``. APIFlask passes
        # None on to Flask, though its own annotation forgets it.
        static_folder=None,  # type: ignore[arg-type]
    )
    app.config.update(
        # FLASK_DEBUG of the environment would switch it on, in production too: Flask then answers
        # a broken form with the names of what it looked for.
        DEBUG=False,
        SQLALCHEMY_DATABASE_URI=settings.database_url,
        SQLALCHEMY_ENGINE_OPTIONS=engine_options(settings.database_url),
    )
    logs.configure(settings.log_level, production=settings.app_env == "production")
    ensure_folder(settings.database_url)
    db.init_app(app)
    migrate.init_app(app, db, directory=str(migrations_path()))
    with app.app_context():
        prepare_engine(db.engine)
        services = build_services(
            settings, web.database(db.engine), count_unknown=metrics.count_unknown_email
        )
    web.init_app(app, services)
    api.init_app(app, services)
    pages.init_app(app)
    cli.init_app(app)
    return app
