"""The small world."""
