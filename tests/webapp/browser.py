"""The app's browser: it fills the blanks of a recorded call, sends it and compares what comes back.

``{name}``      the value that the browser knows by that name, or else learns from the answer
``{new name}``  a value that the browser learns from the answer, whatever it knew before
``{any name}``  a value of the answer that differs each time, such as a date
``{length}``    in a request, the number of bytes of its body
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from difflib import ndiff

from tests.webapp.calls import BLOCKS, Call

# Each blank takes this form alone: a token that is no JWT is a difference. All text is Latin-1, a
# character a byte; as UTF-8, an image could not be compared.
FORMS = {
    "access": r"[\w-]+\.[\w-]+\.[\w-]+",
    "avatar": r"/media/avatars/[\w.-]+",
    "date": r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT",
    "date_joined": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    "etag": r"[\w-]+",
    "id": r"[1-9]\d*",
    "length": r"[1-9]\d*",
    "methods": r"[A-Z]+(?:, [A-Z]+)*",
    "output": r'(?:[^"\\]|\\.){8,}',
    "password_id": r"[1-9]\d*",
    "refresh": r"[\w-]+\.[\w-]+\.[\w-]+",
    "request_id": r"[0-9a-f]{32}",
    "seconds": r"[1-9]\d*",
    "sentence": r'(?:[^"\\]|\\.)+',
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    "webp": r"(?s:RIFF....WEBP.+)",
}
BLANK = re.compile(r"\{(?:(new|any) )?([a-z_]+)\}")
# Seconds. Without a limit, a server that never answers would stop the whole run of the tests.
TIMEOUT = 120


class Browser:
    """One person at one address, with what the app keeps of them in ``known``."""

    def __init__(self, port: int, address: str, known: Mapping[str, str]) -> None:
        self._port = port
        self._address = address
        self.known = dict(known)

    def replay(self, call: Call, **known: str) -> None:
        """Send the request and compare the answer, status line, headers and body, to the byte.

        *known* is known during this call alone; what the answer fills in stays known.
        """
        values = {**self.known, **known}
        answer = self.send(fill(call.request, values))
        wanted = parts(fill(call.answer, values))
        found = []
        for part in parts(answer):
            matches = ((line, pattern(line).fullmatch(part)) for line in wanted)
            line, match = next(((line, match) for line, match in matches if match), (part, None))
            found.append(line)
            self.known |= match.groupdict() if match else {}
        if found != wanted:
            # Show a line that fits as it is recorded: else each date would look like a difference.
            title = f"{call.request.partition(chr(10))[0]}: - is recorded, + was answered"
            raise AssertionError("\n".join([title, *ndiff(printable(wanted), printable(found))]))

    def send(self, request: str) -> str:
        """Write the bytes of *request* and return every byte that the server answers to it."""
        head, _, body = request.partition("\r\n\r\n")
        head = head.replace("{length}", str(len(body)))
        with (
            socket.create_connection(
                ("127.0.0.1", self._port), TIMEOUT, source_address=(self._address, 0)
            ) as connection,
            connection.makefile("rb") as file,
        ):
            connection.sendall(f"{head}\r\n\r\n{body}".encode("latin-1"))
            answer, length = b"", 0
            while line := file.readline():
                answer += line
                if line == b"\r\n":
                    break
                name, _, value = line.lower().partition(b":")
                length = int(value) if name == b"content-length" else length
            answer += file.read(length)
            # The server closes once nothing can be asked any more. Bytes that it sends before that
            # would be read as the beginning of the next answer.
            connection.shutdown(socket.SHUT_WR)
            answer += file.read()
        return answer.decode("latin-1")


def fill(text: str, values: Mapping[str, str]) -> str:
    """Return a recorded *text* as its bytes, with what is known in its blanks."""
    for name, block in BLOCKS.items():
        text = text.replace(f"{{{name}}}", block)
    text = text.replace("\n", "\r\n").encode().decode("latin-1")
    return BLANK.sub(
        lambda blank: blank[0] if blank[1] else values.get(blank[2], blank[0]),
        text,
    )


def parts(answer: str) -> list[str]:
    """Return the status line, the headers by name, whose order says nothing, and the body."""
    head, _, body = answer.partition("\r\n\r\n")
    status, *headers = head.split("\r\n")
    return [status, *sorted(headers, key=lambda line: line.partition(":")[0]), body]


def printable(lines: list[str]) -> list[str]:
    """Return *lines* with escapes for what a terminal would not show, as the bytes of an image."""
    return [line.encode("unicode_escape").decode() for line in lines]


def pattern(part: str) -> re.Pattern[str]:
    """Return what a part of an answer has to match: every character but those in the blanks."""
    text, end = "", 0
    for blank in BLANK.finditer(part):
        kind, name = blank.groups()
        group = "?:" if kind == "any" else f"?P<{name}>"
        text += f"{re.escape(part[end : blank.start()])}({group}{FORMS[name]})"
        end = blank.end()
    return re.compile(text + re.escape(part[end:]))
