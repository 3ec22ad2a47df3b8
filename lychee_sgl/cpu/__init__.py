"""SGLang on a machine without an accelerator: the platform, and the fast paths of decode and prefill."""
