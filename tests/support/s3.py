"""A real S3 server for tests: moto, on a free loopback port, in a thread of this process."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from urllib.request import urlopen

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders
from moto.server import ThreadedMotoServer

from accountsvc.adapters.objectstore import s3_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


Answer = tuple[int, bytes]


@dataclass
class S3Server:
    """A running server; ``env`` is what a process needs to find it.

    While ``fault`` is set, it is asked before each request (method and path): it returns an answer
    that is given instead, or None.
    """

    host: str
    port: int
    fault: Callable[[str, str], Answer | None] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            # Read nothing from the developer's home, and look for no cloud's metadata service: a
            # test would wait for it.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @cached_property
    def client(self) -> S3Client:
        """A client as the service makes it, but more patient; the first one takes a second."""
        with patch.dict(os.environ, self.env):
            # A busy test machine is slower than any store.
            return s3_client(read_timeout=60)

    def make_bucket(self, *, versions: str = "") -> str:
        """Make a bucket of its own name; *versions* is ``Enabled``, ``Suspended`` or nothing."""
        name = f"test-{uuid.uuid4().hex}"
        self.client.create_bucket(Bucket=name)
        for status in ("Enabled", "Suspended")[: {"": 0, "Enabled": 1, "Suspended": 2}[versions]]:
            self.client.put_bucket_versioning(
                Bucket=name,
                VersioningConfiguration={"Status": status},  # type: ignore[typeddict-item]
            )
        return name


@contextmanager
def start_moto() -> Iterator[S3Server]:
    """Run a server, on a port that the kernel picks, until the block ends."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    s3_server = S3Server(*server.get_host_and_port())
    assert server._server is not None
    moto = server._server.app

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        path = f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        answer = s3_server.fault and s3_server.fault(environ["REQUEST_METHOD"], path)
        if not answer:
            return moto(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(f"{answer[0]} No", [("Content-Type", "application/xml")])
        return [answer[1]]

    server._server.app = application
    try:
        # The first answer waits until all of moto's S3 is imported. On a busy machine that takes
        # longer than the service waits for a store, so that its first upload would fail.
        urlopen(s3_server.url, timeout=120).close()
        yield s3_server
    finally:
        server.stop()
        # ``stop`` ends the loop only; an open socket would be reported when it is collected.
        server._server.server_close()


@contextmanager
def on_request(
    client: S3Client, operation: str, answer: Callable[[], Answer | None]
) -> Iterator[None]:
    """Within the block let *answer* speak for the server, each time before *operation* is sent.

    It returns a status and an XML body, or None to let the request through.
    """

    def intercept(request: AWSPreparedRequest, **_: object) -> AWSResponse | None:
        substitute = answer()
        if substitute is None:
            return None
        status, body = substitute
        return AWSResponse(request.url, status, HTTPHeaders(), _Raw(body))

    # botocore gives its caller the return value of this handler in place of the server's answer;
    # the stubs know only handlers that return nothing.
    handler: Callable[..., Any] = intercept
    client.meta.events.register(f"before-send.s3.{operation}", handler)
    try:
        yield
    finally:
        client.meta.events.unregister(f"before-send.s3.{operation}", handler)


def error(status: int, code: str) -> Answer:
    """Return the answer with which S3 refuses."""
    return status, f"<Error><Code>{code}</Code><Message>No</Message></Error>".encode()


class _Raw(BytesIO):
    def stream(self) -> Iterator[bytes]:
        yield self.read()
