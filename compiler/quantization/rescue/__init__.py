"""The rescue ladder: what is tried, rung by rung, when plain int8 loses too much; kept only if it helps on held-out samples."""
