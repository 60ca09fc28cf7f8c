"""A worker sees by itself that its ledger is damaged, and says so once a minute, not each second."""

from __future__ import annotations

from pathlib import Path

from tests.support.factories import dispose, make_app, make_due, make_person, services_of
from tests.support.processes import environment, eventually, worker
from tests.support.state import read_account


def test_a_worker_says_what_is_amiss_with_its_ledger_and_goes_on(
    sqlite_url: str, tmp_path: Path
) -> None:
    # given: an object that is cut, and nobody who is due
    app = make_app(sqlite_url, tmp_path)
    services = services_of(app)
    gone, due = (make_person(services, name) for name in ("ann", "bob"))
    make_due(services, gone)
    services.sweep()
    (path,) = (services.settings.instance_path / "ledger").rglob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-9])

    with worker(environment(tmp_path, sqlite_url, SWEEP_INTERVAL="1s")) as running:
        # then
        running.wait_for("receipts have no line in the ledger")
        assert path.name in running.log
        assert str(gone.public_id) in running.log
        assert "cannot be read: it is cut or damaged" in running.log

        # when: somebody is due all the same
        make_due(services, due)
        eventually(lambda: read_account(services, due.id) is None)

        assert "Traceback" not in running.log
        assert running.log.count("receipts have no line in the ledger") <= 2
    dispose(app)
