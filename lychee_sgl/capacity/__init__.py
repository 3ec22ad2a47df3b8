"""Which model, context, batch and budget fit which GPUs: arithmetic on shapes, without a GPU. Standard library only."""
