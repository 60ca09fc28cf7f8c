"""The database: tables, triggers, transactions, row locks, the audit trail, migrations."""
