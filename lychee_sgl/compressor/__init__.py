"""A compressor: text to a few input embeddings that stand for it, and its training (DESIGN.md section 14)."""
