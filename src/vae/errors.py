"""The one error that a user can mend."""


class InputError(ValueError):
    """Something the user gave is wrong; the message names it, says why, and gives the way out."""
