"""The schema's history; ``env.py`` runs it."""
