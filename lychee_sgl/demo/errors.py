"""What can go wrong in a demo that a user can mend."""


class DemoError(RuntimeError):
    """The demo cannot go on; the message says why and, where there is a way out, what to do."""
