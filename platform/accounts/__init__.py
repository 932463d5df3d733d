"""People, the projects they work in and what they may do there."""
