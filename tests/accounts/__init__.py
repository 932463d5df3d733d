"""People and projects."""
