"""Memory that a training keeps."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource
import torch
from engine import keep_freed_memory

def count_page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(2**24).fill_(1.0)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = count_page_faults()
keep_freed_memory()
count_page_faults()
print(default, count_page_faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True
    )
    default, kept = map(int, done.stdout.split())
    assert kept < default / 4
