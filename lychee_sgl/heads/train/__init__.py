"""Training of head plans: stochastic gates on every KV head, distilled from the dense model."""
