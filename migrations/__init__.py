"""The schema's history; ``env.py`` runs it, ``support.py`` holds what several revisions need."""
