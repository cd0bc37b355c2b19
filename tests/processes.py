"""Run several command lines, one after another, in two processes that train together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PROCESSES = 2


def run_together(commands: list[list[str]], folder: Path) -> list[list[Any]]:
    """Run command lines in two new processes, which are started once for all of them.

    Returns:
        For each process, the exit status or message of each command line; 0 if it succeeded.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = folder / "job.json"
    job.write_text(json.dumps(commands))
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(PROCESSES),
        "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.processes", str(job)],
            cwd=ROOT,
            env={**environment, "LOCAL_RANK": str(rank)},
        )
        for rank in range(PROCESSES)
    ]
    try:
        statuses = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert statuses == [0] * PROCESSES
    return [json.loads((folder / f"job.json.{rank}").read_text()) for rank in range(PROCESSES)]


def main() -> None:
    import cli

    job = Path(sys.argv[1])
    exits: list[Any] = []
    for args in json.loads(job.read_text()):
        try:
            cli.main(args)
            exits.append(0)
        except SystemExit as stopped:
            exits.append(stopped.code)
    Path(f"{job}.{os.environ['LOCAL_RANK']}").write_text(json.dumps(exits))


if __name__ == "__main__":
    main()
