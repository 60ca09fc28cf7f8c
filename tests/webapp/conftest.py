"""The service as `make run` serves it, and the people who use the app."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.support.deploy import procfile_command
from tests.support.processes import Running, client_of, environment, eventually, is_ready, run
from tests.support.servers import free_port
from tests.webapp.browser import Browser
from tests.webapp.calls import PASSWORD, PNG, SIGN_UP

NewBrowser = Callable[[], Browser]


@pytest.fixture(scope="package")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where the service listens, in an instance of its own."""
    env = environment(tmp_path_factory.mktemp("webapp"), PORT=str(free_port()))
    # Throttles count in production: with them off, a limit that stops the app would go unseen.
    del env["RATE_LIMITS"]
    prepared = run("python", "-m", "accountsvc", "prepare", env=env)
    assert prepared.returncode == 0, prepared.stderr
    with Running(*procfile_command("web"), env=env) as running:

        def serves() -> bool:
            assert running.process.poll() is None, "the server has ended"
            with client_of(env) as client:
                return is_ready(client)

        eventually(serves)
        yield int(env["PORT"])
        running.stop()
        assert "Traceback" not in running.log


@pytest.fixture(scope="package")
def new_browser(port: int) -> NewBrowser:
    """Make browsers of people who have no account yet, each at an address of their own."""
    numbers = itertools.count(1)

    def make() -> Browser:
        number = next(numbers)
        known = {
            "username": f"ana{number}",
            "email": f"ana{number}@example.org",
            "password": PASSWORD,
            "first_name": "Ana",
            "number_phone": "+52 (55) 1234-5678",
            "name_pages": "Mi sitio",
            "url": "https://example.org/login?a=1&b=2",
            "password_saved": "zX7-mQ2_vB9!",
            "image": PNG.decode("latin-1"),
        }
        return Browser(port, f"127.1.{number // 250}.{number % 250 + 1}", known)

    return make


@pytest.fixture
def nobody(new_browser: NewBrowser) -> Browser:
    """A visitor without an account."""
    return new_browser()


def signed_up(browser: Browser) -> Browser:
    """Sign up; from then on the body of a call is the person's id, as the app sends it."""
    browser.replay(SIGN_UP)
    browser.known["body"] = browser.known["id"]
    return browser


@pytest.fixture
def ann(new_browser: NewBrowser) -> Browser:
    """Somebody who has just signed up."""
    return signed_up(new_browser())


@pytest.fixture
def bob(new_browser: NewBrowser) -> Browser:
    """Somebody else, who has just signed up."""
    return signed_up(new_browser())
