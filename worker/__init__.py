"""``celery -A worker worker -B`` runs everything: sweeps, deliveries and their schedule.

Celery finds its app by the name ``celery`` in here; the name ``app`` would hide the module of that
name. An installed service has this package as ``accountsvc.worker``, so nothing in it may rely on
its own name.
"""

from __future__ import annotations

import gc
import os

# The garbage collector would look through all that is imported, again and again, though it stays:
# that is a third of the time that a start takes.
gc.disable()
# What libraries write is for this user alone too, as a pid file of Celery's.
os.umask(0o077)

from accountsvc.config import ConfigError, load_settings  # noqa: E402

from .app import make_celery  # noqa: E402

try:
    celery = make_celery(load_settings())
except ConfigError as exc:
    # A traceback would bury the lines that whoever starts the process needs.
    raise SystemExit(exc.report.rstrip()) from None

gc.freeze()
gc.enable()
