"""The release before: its artifacts, the numbers in them, and what an update from it costs."""
