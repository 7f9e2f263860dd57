"""The exceptions for mistakes a user can mend."""


class UserError(ValueError):
    """Bad input. The message names the argument, its value and the mend.

    The command line prints it and exits with 2; library callers catch it as a ``ValueError``.
    """


class Missing(UserError):
    """Something that is not on this machine. command: gets it, where there is a connection."""

    def __init__(self, message: str, command: str):
        super().__init__(message)
        self.command = command


class MissingFiles(Missing):
    """Files of a network that are not here and could not be had."""


class MissingPackage(Missing):
    """A Python package that is not installed."""
