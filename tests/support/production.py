"""A production that asks nobody anything: the settings that it demands, with values that do."""

from __future__ import annotations

import base64

from accountsvc import readers
from tests.support.factories import SECRET_KEY, SIGNING_KEY, VAULT_KEY

OTHER_VAULT_KEY = base64.urlsafe_b64encode(bytes(range(32, 64))).decode()
PUBLIC_KEY = readers.key_text(readers.public_key_of(readers.signing_key(SIGNING_KEY)))

# All but DATABASE_URL. Workers and the operator's commands have SIGNING_KEY too.
PRODUCTION_ASKS = {
    "APP_ENV": "production",
    "SECRET_KEY": SECRET_KEY,
    "VAULT_KEYS": VAULT_KEY,
    "LEDGER_PUBLIC_KEYS": PUBLIC_KEY,
    "REDIS_URL": "rediss://redis:6379/0",
    "MAIL_URL": "smtp://mail:587",
    "MAIL_FROM": "Accounts <accounts@example.org>",
    "PUBLIC_URL": "https://accounts.example.org",
    "CORS_ORIGINS": "https://app.example.org",
    "TRUSTED_PROXIES": "10.0.0.0/8",
}
