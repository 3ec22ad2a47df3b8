"""What stops an evaluation; messages are for people."""


class EvalError(RuntimeError):
    """The evaluation cannot be made, or not gone on with."""
