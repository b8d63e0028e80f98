"""Errors that a user can mend: shown as one message, without a traceback."""


class UserError(Exception):
    """The message says what is wrong, where, and what to do."""
