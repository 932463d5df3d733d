"""Speed and experiments: ours beside the peers, in one run. `python -m bench`."""
