"""The WSGI application, for gunicorn (``wsgi:app``) and for ``flask --app wsgi``."""

from __future__ import annotations

import gc
import sys

# What is imported stays. To look through it for garbage, again and again, is a third of the start, and
# once more at the end.
gc.disable()

from accountsvc import create_app  # noqa: E402
from accountsvc.config import ConfigError  # noqa: E402

try:
    app = create_app()
except ConfigError as exc:
    # One line for the person who starts the process, where a traceback would bury it.
    sys.stderr.write(f"accountsvc: {exc}\n")
    # With this code gunicorn gives up; after any other it would start the process again and again.
    raise SystemExit(3) from None

gc.freeze()
gc.enable()
