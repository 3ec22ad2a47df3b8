"""The attention backend `lychee`: DESIGN.md sections 2 and 3 inside SGLang."""
