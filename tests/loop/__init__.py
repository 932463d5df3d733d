"""The platform from outside: real processes, real queue, the command line and the browser."""
