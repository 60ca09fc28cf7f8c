"""gunicorn's settings in a clone, where ``gunicorn`` by itself looks for them: the package's."""

from accountsvc.start.gunicorn_conf import *  # noqa: F403
