"""The schema's history, which ``env.py`` runs; installed, it is ``accountsvc.migrations``."""
