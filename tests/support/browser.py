"""The browser of the tests: the one place that finds it, installs it and launches it.

``python -m tests.support.browser`` is what ``make test`` runs before any test.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from playwright.sync_api import Browser, BrowserType, sync_playwright
from playwright.sync_api import Error as PlaywrightError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# macOS puts no program of an application into PATH, so an installed browser would not be found.
APPLICATIONS = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DOWNLOAD_SECONDS = 60.0
PACKAGES = """\
  Debian, Ubuntu:  apt-get install chromium
  Fedora:          dnf install chromium
  macOS:           brew install --cask google-chrome"""


class NoBrowser(Exception):
    """No browser starts; the message says which packages have one."""

    def __init__(self) -> None:
        named = os.environ.get("CHROMIUM")
        reason = f"CHROMIUM={named} does not start" if named else "no browser was found"
        super().__init__(
            f"{reason}, so no test has run. Install one of these, "
            f"or name a browser with CHROMIUM=/path/to/it:\n{PACKAGES}"
        )


def candidates() -> list[str | None]:
    """Return the browsers to try, the best first; None stands for the one of Playwright's own.

    ``$CHROMIUM`` (a path, or a name in PATH) is the only one where it is set: whoever names a
    browser does not want to be tested with another.
    """
    if named := os.environ.get("CHROMIUM"):
        return [shutil.which(named) or named]
    installed = [path for name in NAMES if (path := shutil.which(name))]
    return [*installed, *filter(os.path.exists, APPLICATIONS), None]


@contextmanager
def launched() -> Iterator[Browser]:
    """Give the first browser of :func:`candidates` that starts; close it afterwards.

    Raises NoBrowser if none does. A file of that name is not enough: Ubuntu's ``chromium-browser``
    only says how to install another package, and Playwright's own lacks libraries on a bare
    machine.
    """
    with sync_playwright() as playwright:
        browser = _launch(playwright.chromium)
        yield browser
        browser.close()


def _launch(chromium: BrowserType) -> Browser:
    for path in candidates():
        with suppress(PlaywrightError):
            # A busy machine takes its time; a browser that is no good ends at once.
            return chromium.launch(executable_path=path, args=FLAGS, timeout=120_000)
    raise NoBrowser


def prepare(*, root: bool, seconds: float = DOWNLOAD_SECONDS) -> None:
    """See to it that :func:`launched` works: look, else download, else, as *root*, ask apt-get.

    Each installation is announced in one line before it begins. ``NO_INSTALL=1`` forbids them, and
    so does ``$CHROMIUM``, which names a browser that is there. Raises NoBrowser if none starts in
    the end.
    """
    may_install = not os.environ.get("NO_INSTALL") and not os.environ.get("CHROMIUM")
    if _starts() or (may_install and _download(seconds) and _starts()):
        return
    if may_install and root and shutil.which("apt-get"):
        _ask_apt()
        if _starts():
            return
    raise NoBrowser


def _starts() -> bool:
    try:
        with launched():
            return True
    except NoBrowser:
        return False


def _download(seconds: float) -> bool:
    """Let Playwright download a browser for the tests alone; say in a line why it could not.

    After *seconds* the download is killed, with all processes that it has started.
    """
    _say(
        f"no browser was found: Playwright downloads one, within {seconds:g} s "
        "(NO_INSTALL=1: never)"
    )
    command = (sys.executable, "-m", "playwright", "install", "--only-shell", "chromium")
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Give it a group of its own: the download is done by children, which would go on for
        # minutes.
        start_new_session=True,
    ) as process:
        try:
            said = process.communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            said = f"not done within {seconds:g} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        errors = [line for line in said.splitlines() if line.startswith("Error: ")]
        reason = errors[0].removeprefix("Error: ") if errors else said.strip()
        _say(f"the download failed: {reason}")
    return process.returncode == 0


def _ask_apt() -> None:
    _say("as root: apt-get update, apt-get install chromium (NO_INSTALL=1: never)")
    for words in (("update",), ("install", "--yes", "--no-install-recommends", "chromium")):
        result = subprocess.run(
            ("apt-get", "-qq", "-o", "Acquire::Retries=1", *words),
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            last = [f"exit code {result.returncode}", *result.stderr.strip().splitlines()][-1]
            _say(f"apt-get {words[0]} failed: {last}")


def _say(sentence: str) -> None:
    print(f"make test: {sentence}", file=sys.stderr, flush=True)


def main(*, root: bool, seconds: float = DOWNLOAD_SECONDS) -> int:
    """Return the exit code: 0 if a browser starts, 1 if none does."""
    # SIGTERM ends Python without its ``finally``, and a download would go on alone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        prepare(root=root, seconds=seconds)
    except NoBrowser as exc:
        _say(str(exc))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(root=os.geteuid() == 0))
