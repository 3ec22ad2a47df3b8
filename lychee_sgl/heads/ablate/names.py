"""How an ablation calls its plans."""


def at_count(name: str, count: int) -> str:
    """The name of a plan made again with another number of retrieval heads."""
    return f"{name}-{count}-heads"
