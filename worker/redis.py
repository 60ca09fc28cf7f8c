"""Redis as kombu speaks it, except for two things that would stop a worker.

One is what is no message at all; the other is a Redis that is lost while messages are worked on.
"""

from __future__ import annotations

from base64 import b64decode
from json import JSONDecodeError
from queue import Empty
from typing import Any

import structlog

# kombu has no types: every ``type: ignore`` of this module is about a call of it.
from kombu.transport import redis, virtual

log = structlog.get_logger(__name__)

# Redis has given away already what cannot be read, so it does not come again. Raised further, the
# error would end the worker: whoever can write into Redis could do so after each start.
_DROPPED = "a message that cannot be read was dropped"


class QoS(redis.QoS):
    """kombu's account of the messages that are being worked on, which survives a lost Redis."""

    def ack(self, delivery_tag: Any) -> None:
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        except Exception:
            # The message counts as done all the same. With as many as the worker takes at once, it
            # would otherwise ask for no further one, so that it would neither notice that Redis is
            # gone nor ever work again. Redis gives the message to somebody later, if it still has
            # it.
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]
            raise


class Channel(redis.Channel):
    """kombu's channel, which drops what is no JSON."""

    QoS = QoS

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (JSONDecodeError, UnicodeDecodeError):
            # Catch nothing else: a broken connection shows itself by errors of many kinds.
            log.warning(_DROPPED)
            raise Empty from None


class Transport(redis.Transport):
    """kombu's transport, which drops JSON that is no envelope of a message."""

    Channel = Channel

    def _deliver(self, message: Any, queue: Any) -> None:
        if _is_envelope(message):
            super()._deliver(message, queue)  # type: ignore[no-untyped-call]
        else:
            log.warning(_DROPPED)


def _is_envelope(message: Any) -> bool:
    """Say whether *message* has all that kombu reads without looking whether it is there."""
    if not isinstance(message, dict):
        return False
    properties, body = message.get("properties"), message.get("body")
    return (
        isinstance(body, str)
        and isinstance(message.get("headers"), dict)
        and isinstance(properties, dict)
        and isinstance(properties.get("delivery_tag"), str)
        and isinstance(properties.get("delivery_info"), dict)
        and (properties.get("body_encoding") is None or _is_base64(properties, body))
    )


def _is_base64(properties: dict[str, Any], body: str) -> bool:
    try:
        return properties["body_encoding"] == "base64" and b64decode(body) is not None
    except ValueError:
        return False
