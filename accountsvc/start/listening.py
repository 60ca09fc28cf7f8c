"""Where the web listens: what ``HOST`` means, and whether it can be had."""

from __future__ import annotations

import errno
import os
import socket

from . import Failure

_THIS_MACHINE = "127.0.0.1"


def host() -> str:
    """Return ``HOST``, an IPv6 address without brackets; this machine alone if it is not set.

    On all addresses a try-out would be open to a whole network.
    """
    return (os.environ.get("HOST") or _THIS_MACHINE).strip("[]")


def bind(port: int) -> str:
    """Return where to listen as gunicorn reads it."""
    name = host()
    # Without brackets gunicorn would look for the port behind the first colon of the address.
    return f"[{name}]:{port}" if _is_ipv6(name) else f"{name}:{port}"


def refuse_taken(port: int, program: str) -> None:
    """Raise Failure if the web could not listen at *port*: gunicorn would try for seconds.

    *program* is what to call again with another port.
    """
    name = host()
    # The URL that is shown says localhost, which a browser looks up as ::1 first: whoever else
    # listens there would get the requests.
    names = [name] if os.environ.get("HOST") else [name, "::1"]
    if any(_is_taken(name, port) for name in names):
        free = next(
            (
                other
                for other in range(port + 1, 65_536)
                if not any(_is_taken(name, other) for name in names)
            ),
            None,
        )
        advice = "" if free is None else f"; for example: PORT={free} {program}"
        raise Failure(f"port {port} is taken{advice}")
    fault = _fault(name, port)
    if fault is not None:
        reason = fault.strerror if isinstance(fault, OSError) else "it is no host's name"
        raise Failure(f"nothing can listen at port {port} of {name!r}: {reason}")


def _is_taken(name: str, port: int) -> bool:
    fault = _fault(name, port)
    return isinstance(fault, OSError) and fault.errno == errno.EADDRINUSE


def _fault(name: str, port: int) -> OSError | UnicodeError | None:
    """Return why nothing can listen there, None if something can."""
    family = socket.AF_INET6 if _is_ipv6(name) else socket.AF_INET
    # As gunicorn does, listen at :: for IPv4 too.
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    try:
        with socket.create_server((name, port), family=family, dualstack_ipv6=both):
            return None
    except (OSError, UnicodeError) as exc:
        return exc


def _is_ipv6(name: str) -> bool:
    return name.count(":") > 1
