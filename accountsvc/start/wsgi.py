"""The WSGI application, made when this module is imported; a wrong setting ends the process."""

from __future__ import annotations

import gc
import os
import sys

# The garbage collector would look through all that is imported, again and again, though it stays:
# that is a third of the time that a start takes, and once more at the end.
gc.disable()

# What libraries write is for this user alone too: the counts that the processes of the web share
# would be readable by everybody on the host.
os.umask(0o077)

from accountsvc import create_app, logs  # noqa: E402
from accountsvc.config import ConfigError, load_settings, nearly_settings  # noqa: E402

try:
    # ``flask`` imports this for the operator's commands, which seal the ledger; the web does not.
    is_web = os.environ.get("FLASK_RUN_FROM_CLI") != "true"
    settings = load_settings()
    app = create_app(settings.without_signing_key() if is_web else settings)
    # A line of the log would stand in the document that one of the commands prints.
    if is_web:
        logs.say_misspelled(nearly_settings(os.environ))
        # The operator's commands go on with wrong keys: most of them open no vault, and some mend
        # this.
        app.extensions["accountsvc"].refuse_wrong_vault_keys()
        app.extensions["accountsvc"].say_unmapped_tables()
except ConfigError as exc:
    # A traceback would bury the lines that whoever starts the process needs.
    sys.stderr.write(exc.report)
    # With this code gunicorn gives up; after any other it would start the process again and again.
    raise SystemExit(3) from None

gc.freeze()
gc.enable()
