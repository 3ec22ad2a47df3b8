"""Token masks without a GPU."""

import torch

from lychee_sgl.cpu import grammar


def test_a_fresh_mask_allows_everything_and_a_cleared_bit_forbids_its_token() -> None:
    mask = grammar.allocate(70, 2)
    assert mask.shape == (2, 3)
    logits = torch.arange(140, dtype=torch.float32).reshape(2, 70)
    before = logits.clone()
    grammar.apply(logits, mask)
    assert torch.equal(logits, before)
    mask[1, 2] = ~(1 << 3)  # token 2 * 32 + 3
    grammar.apply_method(None, logits, mask)
    assert logits[1, 67] == -torch.inf
    before[1, 67] = -torch.inf
    assert torch.equal(logits, before)
