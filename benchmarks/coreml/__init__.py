"""Core ML: how fast the reference evaluator is, what precisions cost on real architectures, what compression saves."""
