"""Read by each process that a test starts: libraries of the tests alone are not there for it.

structlog, Celery and kombu import these where they find them, as they do in no installed service;
that would be a tenth of the processor time that a start takes.
"""

import sys

sys.modules.update(dict.fromkeys(("rich", "psutil", "yaml")))
