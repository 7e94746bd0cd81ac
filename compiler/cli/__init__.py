"""The `edgewright` command: thin commands over documented functions. Nothing heavy is imported before a command runs."""
