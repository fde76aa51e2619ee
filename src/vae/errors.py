"""The one error that a user can fix."""


class InputError(ValueError):
    """Wrong input. The message names the key or file, what is wrong, and the way out."""
