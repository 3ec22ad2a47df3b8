"""The gateway's endpoints, one router for each kind."""
