"""Speak any ``metadata.csv``: ``python -m datamodules.demo_speech --metadata FILE --root DIR``."""

import argparse
import os
import sys
from pathlib import Path

from datamodules.demo_speech.corpus import speak_corpus
from datamodules.ljspeech import read_metadata
from errors import UserError


def main(args: list[str] | None = None) -> None:
    """Parse the command line and speak."""
    parser = argparse.ArgumentParser(prog="python -m datamodules.demo_speech", description=__doc__)
    parser.add_argument(
        "--metadata", type=Path, required=True, help="id|transcript|… lines to speak"
    )
    parser.add_argument(
        "--root", type=Path, required=True, help="new folder, in LJ Speech's layout"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for the voices")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="number of processes")
    options = parser.parse_args(args)
    try:
        if options.root.exists():
            raise UserError(f"{options.root} exists already: name another --root")
        transcripts = [(id, text) for id, text, _ in read_metadata(options.metadata)]
        speak_corpus(transcripts, options.root, seed=options.seed, workers=options.workers)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
