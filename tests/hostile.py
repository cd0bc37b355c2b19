"""Read hostile files; report messages and memory. test_faults.py runs it in a new process."""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from datamodules import LJSpeechDataModule, OCTMNISTDataModule
from errors import UserError


def memory() -> int:
    """Return the peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main(folder: Path) -> None:
    def speech(name: str) -> Callable[[], None]:
        return lambda: LJSpeechDataModule(root=str(folder / name), splits=(0.5, 0.25)).setup("fit")

    def images(name: str) -> Callable[[], None]:
        return lambda: OCTMNISTDataModule(file=str(folder / name)).setup("fit")

    speech("good")()
    images("good.npz")()
    before = memory()
    found = {}
    for path in sorted(folder.iterdir()):
        if path.stem != "good":
            try:
                (images if path.suffix == ".npz" else speech)(path.name)()
                message = "accepted"
            except UserError as error:
                message = str(error)
            found[path.name] = (message, memory() - before)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
