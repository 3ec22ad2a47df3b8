"""The plan for a model nobody has calibrated. Standard library only."""

from lychee_sgl.heads.plan import HeadPlan, ModelShape


def heuristic_plan(shape: ModelShape) -> HeadPlan:
    """Layer 0 retrieves; of the other layers every second head does, as on a chequerboard: `(layer + head)` even.

    Each sparse head reads the same index of the layer before, which is a retrieval head: no chain is longer than one
    layer, so no set is used far from where it was chosen. Nothing about this is measured; half of the heads is the
    price of not knowing.
    """
    roles = tuple(
        "".join("R" if layer == 0 or (layer + head) % 2 == 0 else "S" for head in range(shape.num_key_value_heads))
        for layer in range(shape.num_hidden_layers)
    )
    return HeadPlan(name="heuristic", model=shape, roles=roles, provenance={"method": "heuristic"})
