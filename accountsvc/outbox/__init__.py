"""The outbox: the queue of effects, the mails that changes owe, and the handlers of both."""
