"""The WSGI application, for gunicorn (``wsgi:app``) and for ``flask --app wsgi``."""

from __future__ import annotations

import sys

from accountsvc import create_app
from accountsvc.config import ConfigError

try:
    app = create_app()
except ConfigError as exc:
    # One line for the person who starts the process, where a traceback would bury it.
    sys.stderr.write(f"accountsvc: {exc}\n")
    # With this code gunicorn gives up; after any other it would start the process again and again.
    raise SystemExit(3) from None
