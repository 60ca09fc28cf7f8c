"""The schema's history, which ``env.py`` runs; in an installed service ``accountsvc.migrations``."""
