"""The wheel and the sdist: what is in them, and that they serve from an empty folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from flask.testing import FlaskClient

import accountsvc
from accountsvc.db.schema import upgrade
from tests.conftest import NewDatabase
from tests.db.test_migrations import counted, populate, revision_of, revisions
from tests.support.factories import PASSWORD
from tests.support.processes import ROOT, Running, environment, eventually, run
from tests.support.servers import free_port

# Where the folders of the repository lie in an installed service.
PACKED = {"accountsvc": "accountsvc", "worker": "accountsvc/worker"}
PACKED["migrations"] = "accountsvc/migrations"
OTHER_SOURCES = (
    "CHANGELOG.md",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "gunicorn.conf.py",
    "pyproject.toml",
    "setup.cfg",
    "wsgi.py",
)
BUILD = "from setuptools import build_meta; build_meta.build_{}({!r})"


class Built(NamedTuple):
    """A wheel of the working tree, an sdist of it, and the wheel that was built from the sdist."""

    wheel: Path
    sdist: Path
    wheel_of_sdist: Path


def build(what: str, source: Path, folder: Path) -> Path:
    """Build as pip does without build isolation, which would fetch setuptools from an index."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD.format(what, str(folder))]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    (result,) = folder.iterdir()
    return result


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    # A copy of the tree, with its tests: a build leaves folders behind, and takes up old ones.
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    tree.mkdir()
    for name in OTHER_SOURCES:
        shutil.copy(ROOT / name, tree)
    for name in (*PACKED, "tests", "bench"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    wheel, sdist = (build(what, tree, folder / what) for what in ("wheel", "sdist"))
    shutil.unpack_archive(sdist, folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return Built(wheel, sdist, build("wheel", unpacked, folder / "again"))


@pytest.fixture(scope="module")
def programs(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new virtual environment that has nothing of ours but the wheel.

    The dependencies come by a line in a ``.pth`` file from the environment that runs the tests, so
    that nothing is fetched. Python does not read the ``.pth`` files in a folder that is added like
    this; so the editable installation, which is one, does not come along.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    dependencies = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (Path(paths["purelib"]) / "dependencies.pth").write_text("\n".join(sorted(dependencies)))
    python = str(folder / "bin" / "python")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    command += ["--no-deps", "--no-index", "--disable-pip-version-check", str(built.wheel)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder / "bin"


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


# What is in them ---------------------------------------------------------------------------------


def test_the_wheel_holds_the_package_alone_and_everything_of_it(built: Built) -> None:
    files = {
        f"{packed}/{path.relative_to(ROOT / name)}"
        for name, packed in PACKED.items()
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    names = {name for name in contents(built.wheel) if ".dist-info/" not in name}

    assert names == files, (
        "name new rooms under packages, other files under package_data: setup.cfg"
    )
    tops = {name.split("/")[0] for name in contents(built.wheel)}
    assert tops == {"accountsvc", f"accountsvc-{accountsvc.__version__}.dist-info"}


def test_the_sdist_builds_the_same_wheel(built: Built) -> None:
    assert contents(built.wheel_of_sdist) == contents(built.wheel)


def test_the_version_is_the_same_everywhere(
    built: Built, programs: Path, tmp_path: Path, client: FlaskClient
) -> None:
    said = run(str(programs / "accountsvc"), "--version", env={}, folder=tmp_path)
    folder = f"accountsvc-{accountsvc.__version__}.dist-info"
    metadata = Parser().parsestr(contents(built.wheel)[f"{folder}/METADATA"].decode())

    assert said.stdout == f"accountsvc {accountsvc.__version__}\n"
    assert metadata["Version"] == accountsvc.__version__
    assert built.sdist.name == f"accountsvc-{accountsvc.__version__}.tar.gz"
    assert client.get("/api/openapi.json").json["info"]["version"] == accountsvc.__version__


# That it runs ------------------------------------------------------------------------------------


EVERY_HELP = """
import accountsvc, click, pathlib, sys
from accountsvc.__main__ import commands
from click.testing import CliRunner

def words(group, before=()):
    context = click.Context(group, info_name="accountsvc")
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield *before, name
        if isinstance(command, click.Group):
            yield from words(command, (*before, name))

assert pathlib.Path(accountsvc.__file__).is_relative_to(sys.prefix), accountsvc.__file__
for command in words(commands):
    result = CliRunner().invoke(commands, [*command, "--help"])
    assert result.exit_code == 0 and "sage: " in result.stdout, (command, result.output)
    assert "flask --app" not in result.stdout, command
    print(*command)
"""


def test_every_command_has_help_also_with_a_wrong_setting(programs: Path, tmp_path: Path) -> None:
    env = environment(tmp_path, GRACE_PERIOD="soon")

    result = run(str(programs / "python"), "-c", EVERY_HELP, env=env, folder=tmp_path)

    assert result.returncode == 0, result.stderr
    shown = set(result.stdout.splitlines())
    assert {"prepare", "run", "web", "worker", "beat", "settings", "shell", "routes"} <= shown
    assert {"accounts purge", "sweeps pause", "avatars orphans", "vault rewrap"} <= shown
    assert {"ledger replay", "db upgrade", "db downgrade"} <= shown
    assert not (tmp_path / "instance").exists()


@pytest.mark.parametrize("words", [("revision", "-m", "x"), ("migrate",), ("edit",), ("init",)])
def test_no_command_writes_into_the_installed_package(
    programs: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    result = run(
        str(programs / "accountsvc"), "db", *words, env=environment(tmp_path), folder=tmp_path
    )

    assert result.returncode == 2
    assert f"No such command '{words[0]}'" in result.stderr


class Installed(NamedTuple):
    """The installed service at work in a folder that was empty."""

    client: httpx.Client
    running: Running
    folder: Path


@pytest.fixture
def installed(programs: Path, tmp_path: Path) -> Iterator[Installed]:
    port = free_port()
    env = environment(tmp_path, GRACE_PERIOD="2s", SWEEP_INTERVAL="1s", PORT=str(port))
    for name in ("SECRET_KEY", "VAULT_KEYS", "LEDGER_SIGNING_KEY", "DATABASE_URL", "INSTANCE_PATH"):
        del env[name]
    # Nothing of the environment that runs the tests may be found by its name.
    env["PATH"] = "/usr/bin:/bin"
    command = str(programs / "accountsvc")
    prepared = run(command, "prepare", env=env, folder=tmp_path)
    assert prepared.returncode == 0, prepared.stderr
    with (
        Running(command, "run", env=env, folder=tmp_path) as running,
        httpx.Client(base_url=f"http://localhost:{port}/api", timeout=120) as client,
    ):
        running.wait_for("everything runs")
        yield Installed(client, running, tmp_path)


def sign_up(client: httpx.Client, name: str) -> dict[str, Any]:
    body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
    answer = client.post("/sign-up/", json=body)
    assert answer.status_code == 201, answer.text
    signed_up: dict[str, Any] = answer.json()
    return signed_up


def sign_in_status(client: httpx.Client, name: str) -> int:
    body = {"email": f"{name}@example.org", "password": PASSWORD}
    return client.post("/sign-in/", json=body).status_code


def test_an_installed_service_purges_an_account_from_an_empty_folder(
    installed: Installed, programs: Path
) -> None:
    # given
    client = installed.client
    gone, _ = sign_up(client, "gone"), sign_up(client, "stays")

    # when
    headers = {"Authorization": f"Bearer {gone['access']}"}
    deleted = client.delete(f"/profile/{gone['user']['id']}/delete/", headers=headers)

    # then: whoever is purged cannot sign in, and somebody else may have the address
    assert deleted.status_code == 204
    eventually(lambda: sign_in_status(client, "gone") == 401)
    assert sign_up(client, "gone")["user"]["id"] != gone["user"]["id"]
    assert sign_in_status(client, "stays") == 200
    assert [path.name for path in installed.folder.iterdir()] == ["instance"]
    assert "Traceback" not in installed.running.log
    installed.running.stop()
    assert installed.running.process.returncode == 0


def test_a_populated_database_of_the_revision_before_is_migrated_by_the_wheel(
    programs: Path, new_database: NewDatabase, tmp_path: Path
) -> None:
    # given
    url = new_database()
    *before, newest = revisions()
    for revision in before:
        upgrade(url, revision)
        populate(url, revision)
    rows = counted(url)

    # when
    env = environment(tmp_path, url)
    prepared = run(str(programs / "accountsvc"), "prepare", env=env, folder=tmp_path)
    listed = run(str(programs / "accountsvc"), "accounts", "list", env=env, folder=tmp_path)

    # then
    assert prepared.returncode == 0, prepared.stderr
    assert revision_of(url) == newest
    assert {name: count for name, count in counted(url).items() if name in rows} == rows
    assert listed.returncode == 0, listed.stderr
