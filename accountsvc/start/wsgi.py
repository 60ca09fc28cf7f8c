"""The WSGI application, made when this module is imported; a wrong setting ends the process."""

from __future__ import annotations

import gc
import sys

# The garbage collector would look through all that is imported, again and again, though it stays:
# that is a third of the time that a start takes, and once more at the end.
gc.disable()

from accountsvc import create_app  # noqa: E402
from accountsvc.config import ConfigError  # noqa: E402

try:
    app = create_app()
except ConfigError as exc:
    # A traceback would bury the one line that whoever starts the process needs.
    sys.stderr.write(f"accountsvc: {exc}\n")
    # With this code gunicorn gives up; after any other it would start the process again and again.
    raise SystemExit(3) from None

gc.freeze()
gc.enable()
