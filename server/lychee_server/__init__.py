"""The gateway: OpenAI's API in front of one SGLang engine, with a sparsity budget for each request."""
