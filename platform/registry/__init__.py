"""What was trained, from what, and what is live."""
