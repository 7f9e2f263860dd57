"""The one exception for mistakes a user can mend."""


class UserError(ValueError):
    """Bad input. The message names the argument, its value and the mend.

    The command line prints it and exits with 2; library callers catch it as a ``ValueError``.
    """
