"""A real Chromium against real processes."""
