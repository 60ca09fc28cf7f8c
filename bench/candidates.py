"""The servers that could serve ``accountsvc.start.wsgi:app``, each started as its own program."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crossplane

from bench.memory import pss, tree
from bench.wire import ask, request
from tests.support.deploy import NGINX
from tests.support.processes import ROOT, Running, eventually
from tests.support.servers import free_port

WSGI_APP, ASGI_APP = "accountsvc.start.wsgi:app", "bench.asgi:app"
_AT = ("--host", "127.0.0.1", "--port")


@dataclass(frozen=True)
class Candidate:
    """A server: its command for a port, and over how many processes it spreads.

    ``shares_metrics``: its configuration makes the folder in which the processes count. The others
    are given one, as an operator could. ``root`` is the checkout whose code it serves.
    """

    name: str
    command: Callable[[str], Sequence[str]]
    processes: int = 2
    shares_metrics: bool = False
    root: Path = ROOT


def _gunicorn(config: str, *words: str) -> Callable[[str], Sequence[str]]:
    # The port is read from PORT.
    return lambda _port: ("gunicorn", "--config", f"python:{config}", *words)


CANDIDATES = (
    Candidate("gunicorn gthread 2×8", _gunicorn("bench.gthread_conf"), shares_metrics=True),
    Candidate("shipped", _gunicorn("accountsvc.start.gunicorn_conf"), shares_metrics=True),
    Candidate(
        "gunicorn sync 2",
        # With more threads it would be gthread again.
        _gunicorn("accountsvc.start.gunicorn_conf", "-k", "sync", "--threads", "1"),
        shares_metrics=True,
    ),
    Candidate(
        "granian 2×4",
        lambda port: (
            *("granian", "--interface", "wsgi", "--no-ws", "--http", "1", "--workers", "2"),
            *("--blocking-threads", "4", "--http1-header-read-timeout", "10000"),
            *("--workers-kill-timeout", "9", *_AT, port, WSGI_APP),
        ),
    ),
    Candidate(
        "waitress 1×16",
        lambda port: (
            *("waitress-serve", "--threads=16", "--connection-limit=1000", "--asyncore-use-poll"),
            *("--channel-timeout=30", f"--listen=127.0.0.1:{port}", WSGI_APP),
        ),
        processes=1,
    ),
    Candidate(
        "uvicorn, a2wsgi 2×8",
        lambda port: (
            *("uvicorn", "--workers", "2", "--no-access-log", "--log-level", "warning"),
            *("--timeout-graceful-shutdown", "8", *_AT, port, ASGI_APP),
        ),
    ),
    Candidate(
        "hypercorn, a2wsgi 2×8",
        lambda port: (
            *("hypercorn", "--workers", "2", "--graceful-timeout", "8", "--log-level", "WARNING"),
            *("--read-timeout", "30", "--bind", f"127.0.0.1:{port}", ASGI_APP),
        ),
    ),
)

# Another checkout of this repository, with a .venv of its own, served as that one configures it and
# on the same database: what has become of a call since then, in one run.
EARLIER = os.environ.get("BENCH_EARLIER")
if EARLIER:
    CANDIDATES = (
        Candidate(
            "earlier",
            lambda _port: (
                f"{EARLIER}/.venv/bin/gunicorn",
                *("--config", "python:accountsvc.start.gunicorn_conf"),
            ),
            shares_metrics=True,
            root=Path(EARLIER),
        ),
        *CANDIDATES,
    )


@dataclass(frozen=True)
class Served:
    """A candidate that serves: its processes, and the port at which clients ask."""

    running: Running
    port: int

    def memory_each(self) -> list[int]:
        """Return the bytes of each of its processes and their children (PSS)."""
        return [pss(pid) for pid in tree(self.pid)]

    @property
    def pid(self) -> int:
        """The process that was started, from which all others descend."""
        return self.running.process.pid


@contextmanager
def serving(
    candidate: Candidate, environ: Mapping[str, str], *, behind_nginx: bool
) -> Iterator[Served]:
    """Start *candidate*, behind nginx if asked, and wait until it is ready."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        env = {**environ, "PORT": str(port), "WEB_CONCURRENCY": str(candidate.processes)}
        env["PYTHONPATH"] = str(candidate.root)
        if not candidate.shares_metrics and candidate.processes > 1:
            env["PROMETHEUS_MULTIPROC_DIR"] = stack.enter_context(tempfile.TemporaryDirectory())
        running = stack.enter_context(
            Running(*candidate.command(str(port)), env=env, folder=candidate.root)
        )
        front = stack.enter_context(_nginx(port)) if behind_nginx else port
        eventually(lambda: _is_ready(front) or running.process.poll() is not None)
        if running.process.poll() is not None:
            raise RuntimeError(f"{candidate.name} did not start:\n{running.log[-3000:]}")
        yield Served(running, front)


def _is_ready(port: int) -> bool:
    answer = ask(port, request("GET", "/readyz", connection="close"), seconds=10)
    return answer is not None and answer.status == 200


# nginx ------------------------------------------------------------------------------------------


def nginx_program() -> str | None:
    """Return where nginx is on this machine, None if nowhere."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def _nginx(upstream: int) -> Iterator[int]:
    """Run nginx by the example, without TLS, in front of the port *upstream*; return its port."""
    program, port = nginx_program(), free_port()
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="accountsvc-nginx-") as folder:
        config = Path(folder) / "nginx.conf"
        config.write_text(nginx_config(Path(folder), upstream=upstream, port=port))
        words = ("-e", f"{folder}/error.log", "-p", folder, "-c", str(config))
        with Running(program, *words, env={"PATH": os.environ["PATH"]}) as running:
            eventually(
                lambda: (
                    ask(port, request("GET", "/none"), seconds=10)
                    or running.process.poll() is not None
                ),
                60,
            )
            assert running.process.poll() is None, running.log
            yield port


def nginx_config(folder: Path, *, upstream: int, port: int) -> str:
    """Return the example without TLS and logs, as a whole configuration that writes in *folder*."""
    blocks: list[dict[str, Any]] = crossplane.parse(str(NGINX), check_ctx=False)["config"][0][
        "parsed"
    ]
    kept = []
    for block in blocks:
        inside = block.get("block", [])
        if block["directive"] == "upstream":
            inside[0]["args"] = [f"127.0.0.1:{upstream}"]
        elif block["directive"] == "server":
            if ["80"] in [one["args"] for one in inside]:
                continue
            without = {"listen", "access_log"}
            inside = [
                one
                for one in inside
                if one["directive"] not in without and not one["directive"].startswith("ssl_")
            ]
            listen = {"directive": "listen", "args": [f"127.0.0.1:{port}"]}
            block["block"] = [listen, {"directive": "access_log", "args": ["off"]}, *inside]
        kept.append(block)
    temporary = "\n".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # As root its processes would be nobody's, who cannot read the folder.
    user = "user root;" if os.geteuid() == 0 else ""
    return (
        f"{user} daemon off; pid {folder}/pid; worker_processes 1; worker_rlimit_nofile 4096;\n"
        f"events {{ worker_connections 2048; }}\n"
        f"http {{ access_log off; {temporary}\n{crossplane.build(kept)}\n}}\n"
    )
