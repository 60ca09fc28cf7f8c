"""`make test` finds a browser, or downloads one, or asks apt-get, or says at once what to install.

The browsers are the real one under other names, or behind a download that a server here offers.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import sync_playwright

from tests.support import browser
from tests.support.browser import NAMES
from tests.support.processes import INHERITED, ROOT, START, eventually

Environment = dict[str, str]


def prepare(
    env: Environment, *, root: bool = False, seconds: float = START
) -> subprocess.CompletedProcess[str]:
    """Run what `make test` runs before the tests."""
    program = (
        "from tests.support.browser import main\n"
        f"raise SystemExit(main(root={root}, seconds={seconds}))"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env,
        timeout=START,
        check=False,
    )


@pytest.fixture(scope="module")
def own_browser() -> str:
    """The path of Playwright's own browser below its folder of browsers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLAYWRIGHT_BROWSERS_PATH", "/nowhere")
        with sync_playwright() as playwright, pytest.raises(PlaywrightError) as refused:
            playwright.chromium.launch()
    found = re.search(r"/nowhere/(\S+)", str(refused.value))
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def real_browser(own_browser: str) -> Path:
    """The browser with which all tests of this run are made."""
    for path in browser.candidates():
        if path is not None:
            return Path(path)
    cache = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return Path.home() / cache / "ms-playwright" / own_browser


@pytest.fixture
def bare(tmp_path: Path) -> Environment:
    """The environment of a machine without a browser, whose downloads fail at once."""
    (tmp_path / "bin").mkdir()
    given = {name: value for name, value in os.environ.items() if name in INHERITED}
    return {
        **given,
        "PATH": str(tmp_path / "bin"),
        "HOME": str(tmp_path),
        "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path / "browsers"),
        "PLAYWRIGHT_DOWNLOAD_HOST": "http://127.0.0.1:1",
    }


def program(path: Path, *lines: str) -> None:
    """Write a shell script that can be run whatever PATH is."""
    path.write_text("\n".join(("#!/bin/sh", "PATH=/usr/bin:/bin", *lines, "")))
    path.chmod(0o755)


def start_of(real: Path) -> str:
    return f'exec "{real}" "$@"'


class Downloads:
    """A server of downloads: it answers 404, an archive of each name, or nothing for ever."""

    def __init__(self, archives: dict[str, bytes], *, silent: bool = False) -> None:
        ended = self._ended = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if silent:
                    ended.wait()
                    return
                archive = next((a for name, a in archives.items() if name in self.path), None)
                self.send_response(404 if archive is None else 200)
                self.send_header("Content-Length", str(len(archive or b"")))
                self.end_headers()
                self.wfile.write(archive or b"")

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_exc: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def archive(name: str, text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = 0o100755 << 16
        file.writestr(entry, text)
    return buffer.getvalue()


# A browser is there ------------------------------------------------------------------------------


def test_the_first_that_starts_is_taken_without_a_word(
    bare: Environment, real_browser: Path, tmp_path: Path
) -> None:
    for name in NAMES:
        # Ubuntu's ``chromium-browser`` may be a text that names another package.
        start = start_of(real_browser) if name == NAMES[-1] else "exit 1"
        program(tmp_path / "bin" / name, f"echo {name} >> {tmp_path}/started", start)

    result = prepare(bare)

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "started").read_text().split() == list(NAMES)


def test_the_browser_that_a_variable_names_is_the_only_one(
    bare: Environment, real_browser: Path, tmp_path: Path
) -> None:
    program(tmp_path / "bin" / "chromium", f"touch {tmp_path}/wrong", start_of(real_browser))
    program(tmp_path / "mine", f"touch {tmp_path}/right", start_of(real_browser))

    found = prepare({**bare, "CHROMIUM": str(tmp_path / "mine")})
    missing = prepare({**bare, "CHROMIUM": str(tmp_path / "none")}, root=True)

    assert (found.returncode, found.stderr) == (0, "")
    assert (tmp_path / "right").exists()
    assert not (tmp_path / "wrong").exists()
    assert missing.returncode == 1
    assert f"CHROMIUM={tmp_path / 'none'} does not start" in missing.stderr


# None is there -----------------------------------------------------------------------------------


def test_without_any_browser_it_says_at_once_what_to_install(
    bare: Environment, tmp_path: Path
) -> None:
    apt(tmp_path, "true")

    result = prepare(bare, root=False)

    assert result.returncode == 1
    assert not (tmp_path / "apt").exists()
    announced, failed, *rest = result.stderr.splitlines()
    assert "Playwright downloads one" in announced
    assert "the download failed: " in failed
    assert "no browser was found, so no test has run" in rest[0]
    assert [line.split(":")[0].strip() for line in rest[1:]] == [
        "Debian, Ubuntu",
        "Fedora",
        "macOS",
    ]
    assert "Traceback" not in result.stderr


def test_playwright_downloads_one_and_the_next_run_finds_it(
    bare: Environment, real_browser: Path, own_browser: str
) -> None:
    folder, _, name = own_browser.partition("/")
    shell = f"#!/bin/sh\nPATH=/usr/bin:/bin\n{start_of(real_browser)}\n"
    archives = {
        "headless-shell": archive(name, shell),
        "ffmpeg": archive("ffmpeg-linux", "#!/bin/sh\n"),
    }

    with Downloads(archives) as url:
        first = prepare({**bare, "PLAYWRIGHT_DOWNLOAD_HOST": url})
    second = prepare({**bare, "NO_INSTALL": "1"})

    assert first.returncode == 0, first.stderr
    assert first.stderr.count("\n") == 1
    assert "Playwright downloads one" in first.stderr
    assert (second.returncode, second.stderr) == (0, "")
    assert (Path(bare["PLAYWRIGHT_BROWSERS_PATH"]) / folder).is_dir()


def test_a_download_that_takes_too_long_is_killed_with_its_children(bare: Environment) -> None:
    with Downloads({}, silent=True) as url:
        mark = f"ACCOUNTSVC_TEST_DOWNLOAD={url}"
        env = {**bare, "PLAYWRIGHT_DOWNLOAD_HOST": url, "ACCOUNTSVC_TEST_DOWNLOAD": url}

        result = prepare(env, seconds=5)

        assert result.returncode == 1
        assert "the download failed: not done within 5 s" in result.stderr
        eventually(lambda: processes_with(mark) == [], 10)


def processes_with(variable: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            variables = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if variable.encode() in variables:
            found.append(path.name)
    return found


def apt(folder: Path, install: str) -> None:
    """Put an ``apt-get`` there that writes down how it was called."""
    program(
        folder / "bin" / "apt-get",
        f'echo "$@" >> {folder}/apt',
        f'case "$*" in *install*) {install};; esac',
    )


def test_root_gets_one_from_apt_get_which_is_announced(
    bare: Environment, real_browser: Path, tmp_path: Path
) -> None:
    program(tmp_path / "package", start_of(real_browser))
    apt(tmp_path, f"cp {tmp_path}/package {tmp_path}/bin/chromium")

    result = prepare(bare, root=True)

    assert result.returncode == 0, result.stderr
    calls = (tmp_path / "apt").read_text().splitlines()
    assert [call.split()[3] for call in calls] == ["update", "install"]
    assert calls[1].split()[-1] == "chromium"
    announced = result.stderr.splitlines()[-1]
    assert "apt-get update, apt-get install chromium" in announced


def test_apt_get_that_fails_says_why_and_what_to_install(bare: Environment, tmp_path: Path) -> None:
    apt(tmp_path, "echo 'E: Unable to locate package chromium' >&2; exit 100")

    result = prepare(bare, root=True)

    assert result.returncode == 1
    assert "apt-get install failed: E: Unable to locate package chromium" in result.stderr
    assert "Fedora:" in result.stderr


def test_a_variable_forbids_both_installations(bare: Environment, tmp_path: Path) -> None:
    apt(tmp_path, "true")

    result = prepare({**bare, "NO_INSTALL": "1"}, root=True)

    assert result.returncode == 1
    assert not (tmp_path / "apt").exists()
    assert "Playwright downloads one" not in result.stderr
    assert "Debian, Ubuntu:" in result.stderr


# The commands ------------------------------------------------------------------------------------


def test_make_test_prepares_the_browser_before_any_test() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\ntest: ")[2].partition("\n\n")[0]
    ci = (ROOT / ".ci" / "run").read_text()

    assert re.search(r"-m tests\.support\.browser\n.*pytest", recipe)
    # What a person types is what CI does: no set-up of its own.
    assert "install" not in ci
    assert re.findall(r"make --no-print-directory (\w+)", ci) == ["lint", "test"]
