"""The commands that prepare and start the service; they need no application."""


class Failure(Exception):
    """Nothing can be started; the message is one line that says why."""
