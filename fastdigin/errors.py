"""The exceptions for mistakes a user can mend."""


class UserError(ValueError):
    """Bad input. The message names the argument, its value and the mend.

    The command line prints it and exits with 2; library callers catch it as a ``ValueError``.
    """


class MissingFiles(UserError):
    """Files of a network that are neither on this machine nor to be had.

    command: fetches them where there is a connection.
    """

    def __init__(self, message: str, command: str):
        super().__init__(message)
        self.command = command
