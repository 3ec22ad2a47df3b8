"""Start, watch, restart and stop the two processes of a deployment: the SGLang engine and the gateway."""
