"""How the service is prepared and started: commands that need no application."""


class Failure(Exception):
    """Nothing can be started; the message is one line that says why."""
