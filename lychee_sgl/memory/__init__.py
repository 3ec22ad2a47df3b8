"""Documents longer than the window, read block by block with a working memory (DESIGN.md section 13)."""
