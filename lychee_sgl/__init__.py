"""Hybrid-head sparse decoding inside stock SGLang: plug-in, head plans and command line."""

__version__ = "0.1.0"
