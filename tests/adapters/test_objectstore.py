"""A store is asked where the settings say, and nowhere else."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch

import pytest

from accountsvc.adapters.objectstore import Bucket, s3_client
from accountsvc.errors import StoreUnavailable


class Elsewhere(ThreadingHTTPServer):
    """Sends every request on to ``/elsewhere``, and notes what it was asked for."""

    status = 302

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Redirect)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Redirect(BaseHTTPRequestHandler):
    server: Elsewhere

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(self.server.status)
        self.send_header("Location", f"{self.server.url}/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    with Elsewhere() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [302, 303, 307, 308])
def test_a_store_that_sends_us_elsewhere_is_not_followed(status: int) -> None:
    """ASVS 5.0, 15.3.2: with the signature of our request, another host could read the store."""
    with elsewhere() as server:
        server.status = status
        settings = {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        with patch.dict(os.environ, settings):
            bucket = Bucket("bucket", client_factory=s3_client)
            with pytest.raises(StoreUnavailable):
                bucket.get("key")

    assert server.asked
    assert "/elsewhere" not in server.asked
