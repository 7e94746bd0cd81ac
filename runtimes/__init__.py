"""What compiler, agent and benchmarks share about running models: the Session protocol, its adapters, the artifact formats."""
