"""``celery -A worker worker -B`` runs everything: sweeps, deliveries and their schedule.

Celery finds its app by the name ``celery`` in here; a name ``app`` would hide the module of that name.
"""

from __future__ import annotations

import gc

# As in wsgi.py: what is imported is no garbage.
gc.disable()

from accountsvc.config import ConfigError, load_settings  # noqa: E402

from .app import make_celery  # noqa: E402

try:
    celery = make_celery(load_settings())
except ConfigError as exc:
    # One line for the person who starts the process, where a traceback would bury it.
    raise SystemExit(f"accountsvc: {exc}") from None

gc.freeze()
gc.enable()
