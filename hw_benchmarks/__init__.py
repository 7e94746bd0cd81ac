"""`edgewright-bench`: measure artifacts on the hardware that will run them, and judge differences with a noise band."""
