"""What the agent costs over a bare loop with the same runtime and model."""
