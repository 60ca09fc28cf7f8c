"""The triggers, with which the database refuses to delete or change what must stay.

The migrations have copies of their own, which are frozen; a test compares the outcome.
"""

from __future__ import annotations

# Nobody may change these columns of a seal; only ``pruned_at`` may be set, once.
_SEAL_COLUMNS = (
    "number",
    "chain",
    "sealed_at",
    "first_event",
    "last_event",
    "first_fact",
    "last_fact",
    "entries",
    "header",
    "head",
    "signature",
)

SQLITE_TRIGGERS = {
    "accounts_refuse_active_delete": """
        CREATE TRIGGER accounts_refuse_active_delete BEFORE DELETE ON accounts
        WHEN OLD.deactivated_at IS NULL
        BEGIN SELECT RAISE(ABORT, 'an active account cannot be deleted'); END""",
    # The foreign key refuses the same, but only on a connection that has switched foreign keys on:
    # the sqlite3 shell of an operator has not.
    "accounts_refuse_held_delete": """
        CREATE TRIGGER accounts_refuse_held_delete BEFORE DELETE ON accounts
        WHEN EXISTS (SELECT 1 FROM legal_holds WHERE account_id = OLD.id AND released_at IS NULL)
        BEGIN SELECT RAISE(ABORT, 'an account with an open hold cannot be deleted'); END""",
    # INSERT OR REPLACE fires delete triggers only on a connection with recursive_triggers: on any
    # other it would replace an event without a word.
    "audit_events_refuse_replace": """
        CREATE TRIGGER audit_events_refuse_replace BEFORE INSERT ON audit_events
        WHEN EXISTS (SELECT 1 FROM audit_events WHERE id = NEW.id)
        BEGIN SELECT RAISE(ABORT, 'audit events are append-only'); END""",
    "audit_events_refuse_update": """
        CREATE TRIGGER audit_events_refuse_update BEFORE UPDATE ON audit_events
        BEGIN SELECT RAISE(ABORT, 'audit events are append-only'); END""",
    # Only what ``audit prune`` takes may go: its seal, which keeps the hashes, says so before.
    "audit_events_refuse_delete": """
        CREATE TRIGGER audit_events_refuse_delete BEFORE DELETE ON audit_events
        WHEN NOT EXISTS (SELECT 1 FROM seals WHERE pruned_at IS NOT NULL
          AND first_event <= OLD.id AND last_event >= OLD.id)
        BEGIN SELECT RAISE(ABORT, 'audit events are append-only'); END""",
    "receipts_refuse_replace": """
        CREATE TRIGGER receipts_refuse_replace BEFORE INSERT ON receipts
        WHEN EXISTS (SELECT 1 FROM receipts WHERE public_id = NEW.public_id)
        BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END""",
    "receipts_refuse_update": """
        CREATE TRIGGER receipts_refuse_update BEFORE UPDATE ON receipts
        BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END""",
    "receipts_refuse_delete": """
        CREATE TRIGGER receipts_refuse_delete BEFORE DELETE ON receipts
        BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END""",
    "receipt_facts_refuse_replace": """
        CREATE TRIGGER receipt_facts_refuse_replace BEFORE INSERT ON receipt_facts
        WHEN EXISTS (SELECT 1 FROM receipt_facts WHERE id = NEW.id)
        BEGIN SELECT RAISE(ABORT, 'facts of receipts are append-only'); END""",
    "receipt_facts_refuse_update": """
        CREATE TRIGGER receipt_facts_refuse_update BEFORE UPDATE ON receipt_facts
        BEGIN SELECT RAISE(ABORT, 'facts of receipts are append-only'); END""",
    "receipt_facts_refuse_delete": """
        CREATE TRIGGER receipt_facts_refuse_delete BEFORE DELETE ON receipt_facts
        BEGIN SELECT RAISE(ABORT, 'facts of receipts are append-only'); END""",
    "seals_refuse_replace": """
        CREATE TRIGGER seals_refuse_replace BEFORE INSERT ON seals
        WHEN EXISTS (SELECT 1 FROM seals WHERE number = NEW.number)
        BEGIN SELECT RAISE(ABORT, 'seals are append-only'); END""",
    "seals_refuse_update": f"""
        CREATE TRIGGER seals_refuse_update BEFORE UPDATE ON seals
        WHEN OLD.pruned_at IS NOT NULL OR NEW.pruned_at IS NULL
          OR {" OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in _SEAL_COLUMNS)}
        BEGIN SELECT RAISE(ABORT, 'seals are append-only'); END""",
    "seals_refuse_delete": """
        CREATE TRIGGER seals_refuse_delete BEFORE DELETE ON seals
        BEGIN SELECT RAISE(ABORT, 'seals are append-only'); END""",
}

POSTGRESQL_FUNCTIONS = {
    "accountsvc_refuse": """
        CREATE FUNCTION accountsvc_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          RAISE EXCEPTION USING
            MESSAGE = TG_ARGV[0], ERRCODE = 'restrict_violation', CONSTRAINT = TG_NAME;
        END $$""",
    "accountsvc_refuse_unpruned": """
        CREATE FUNCTION accountsvc_refuse_unpruned() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          IF EXISTS (SELECT 1 FROM seals WHERE pruned_at IS NOT NULL
            AND first_event <= OLD.id AND last_event >= OLD.id) THEN
            RETURN OLD;
          END IF;
          RAISE EXCEPTION USING
            MESSAGE = TG_ARGV[0], ERRCODE = 'restrict_violation', CONSTRAINT = TG_NAME;
        END $$""",
}

POSTGRESQL_TRIGGERS = {
    "accounts_refuse_active_delete": """
        CREATE TRIGGER accounts_refuse_active_delete BEFORE DELETE ON accounts
        FOR EACH ROW WHEN (OLD.deactivated_at IS NULL)
        EXECUTE FUNCTION accountsvc_refuse('an active account cannot be deleted')""",
    "accounts_refuse_truncate": """
        CREATE TRIGGER accounts_refuse_truncate BEFORE TRUNCATE ON accounts
        FOR EACH STATEMENT EXECUTE FUNCTION accountsvc_refuse('accounts cannot be truncated')""",
    "audit_events_refuse_change": """
        CREATE TRIGGER audit_events_refuse_change BEFORE UPDATE ON audit_events
        FOR EACH ROW EXECUTE FUNCTION accountsvc_refuse('audit events are append-only')""",
    # Only what ``audit prune`` takes may go: its seal, which keeps the hashes, says so before.
    "audit_events_refuse_delete": """
        CREATE TRIGGER audit_events_refuse_delete BEFORE DELETE ON audit_events
        FOR EACH ROW EXECUTE FUNCTION accountsvc_refuse_unpruned('audit events are append-only')""",
    "audit_events_refuse_truncate": """
        CREATE TRIGGER audit_events_refuse_truncate BEFORE TRUNCATE ON audit_events
        FOR EACH STATEMENT EXECUTE FUNCTION accountsvc_refuse('audit events are append-only')""",
    "receipts_refuse_update": """
        CREATE TRIGGER receipts_refuse_update BEFORE UPDATE ON receipts
        FOR EACH ROW
        EXECUTE FUNCTION accountsvc_refuse('receipts are append-only')""",
    "receipts_refuse_delete": """
        CREATE TRIGGER receipts_refuse_delete BEFORE DELETE ON receipts
        FOR EACH ROW EXECUTE FUNCTION accountsvc_refuse('receipts are append-only')""",
    "receipts_refuse_truncate": """
        CREATE TRIGGER receipts_refuse_truncate BEFORE TRUNCATE ON receipts
        FOR EACH STATEMENT EXECUTE FUNCTION accountsvc_refuse('receipts are append-only')""",
    "receipt_facts_refuse_change": """
        CREATE TRIGGER receipt_facts_refuse_change BEFORE UPDATE OR DELETE ON receipt_facts
        FOR EACH ROW EXECUTE FUNCTION accountsvc_refuse('facts of receipts are append-only')""",
    "receipt_facts_refuse_truncate": """
        CREATE TRIGGER receipt_facts_refuse_truncate BEFORE TRUNCATE ON receipt_facts
        FOR EACH STATEMENT
        EXECUTE FUNCTION accountsvc_refuse('facts of receipts are append-only')""",
    "seals_refuse_update": f"""
        CREATE TRIGGER seals_refuse_update BEFORE UPDATE ON seals
        FOR EACH ROW WHEN (OLD.pruned_at IS NOT NULL OR NEW.pruned_at IS NULL
          OR {" OR ".join(f"OLD.{name} IS DISTINCT FROM NEW.{name}" for name in _SEAL_COLUMNS)})
        EXECUTE FUNCTION accountsvc_refuse('seals are append-only')""",
    "seals_refuse_delete": """
        CREATE TRIGGER seals_refuse_delete BEFORE DELETE ON seals
        FOR EACH ROW EXECUTE FUNCTION accountsvc_refuse('seals are append-only')""",
    "seals_refuse_truncate": """
        CREATE TRIGGER seals_refuse_truncate BEFORE TRUNCATE ON seals
        FOR EACH STATEMENT EXECUTE FUNCTION accountsvc_refuse('seals are append-only')""",
}
