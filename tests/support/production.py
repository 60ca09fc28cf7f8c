"""A production that asks nobody anything: the settings that it demands, with values that do."""

from __future__ import annotations

import base64

from tests.support.factories import SECRET_KEY, VAULT_KEY

OTHER_VAULT_KEY = base64.urlsafe_b64encode(bytes(range(32, 64))).decode()

# All but DATABASE_URL.
PRODUCTION_ASKS = {
    "APP_ENV": "production",
    "SECRET_KEY": SECRET_KEY,
    "VAULT_KEYS": VAULT_KEY,
    "REDIS_URL": "rediss://redis:6379/0",
    "MAIL_URL": "smtp://mail:587",
    "MAIL_FROM": "Accounts <accounts@example.org>",
    "PUBLIC_URL": "https://accounts.example.org",
    "CORS_ORIGINS": "https://app.example.org",
    "TRUSTED_PROXIES": "10.0.0.0/8",
}
