"""gunicorn's threads with the settings that fit them best, as the reference of ``servers``."""

from __future__ import annotations

import socket
import struct
from typing import Any

from accountsvc.start.gunicorn_conf import *  # noqa: F403

worker_class = "gthread"
threads = 8
keepalive = 5


def when_ready(server: Any) -> None:  # type: ignore[no-redef]
    """Let go of clients that stand still: a thread that reads waits for its client without end."""
    for listener in server.LISTENERS:
        for option, seconds in ((socket.SO_RCVTIMEO, 10), (socket.SO_SNDTIMEO, 30)):
            # Connections inherit the time-outs of their listener.
            listener.sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))
