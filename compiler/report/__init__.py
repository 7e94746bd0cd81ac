"""The report that decides: report.json (documented schema) and report.html from the same values."""
