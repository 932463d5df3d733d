"""The engine: training stages as programs, files in and files out. Knows no Django."""
