"""The whole story on real data: `python -m demo`. Every step runs the commands that users run."""
