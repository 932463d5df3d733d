"""Which processes work in a run's directory, as the system tells it."""

from pathlib import Path


def working_in(run_dir: Path) -> dict[int, dict[bytes, bytes]]:
    """Environments by process id, of all whose command line names the directory."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # it has just gone
            continue
        if str(run_dir).encode() in command:
            found[int(entry.name)] = dict(pair.split(b"=", 1) for pair in environment if b"=" in pair)
    return found


def ranks_of(run_dir: Path) -> list[int]:
    """The processes of torchrun's ranks that work in this directory, in the order of their numbers."""
    ranks = {
        int(environment[b"RANK"]): pid for pid, environment in working_in(run_dir).items() if b"RANK" in environment
    }
    return [ranks[rank] for rank in sorted(ranks)]
