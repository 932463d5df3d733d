"""Where the platform and the engine meet."""
