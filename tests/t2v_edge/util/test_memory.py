from __future__ import annotations

import subprocess
import sys

import pytest

from t2v_edge.util.memory import ProcessMemory, process_memory


def test_memory_is_read_from_what_the_kernel_says(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t 999999 kB\nVmHWM:\t  204800 kB\nVmRSS:\t  102400 kB\n")
    assert process_memory(status) == ProcessMemory(100 << 20, 200 << 20)


@pytest.mark.parametrize("text", ["", "VmRSS:\t1 kB\n", "VmRSS:\nVmHWM:\n", "VmRSS:\tmuch kB\nVmHWM:\t1 kB\n"])
def test_a_status_file_that_does_not_tell_gives_the_highest_for_both(tmp_path, text):
    (tmp_path / "status").write_text(text)
    found = process_memory(tmp_path / "status")
    assert found.resident_bytes == found.peak_bytes > 1 << 20
    assert process_memory(tmp_path / "absent").peak_bytes > 1 << 20


FILL = """
import numpy as np
from t2v_edge.util.memory import process_memory
before = process_memory().resident_bytes
filled = np.ones(32 << 20, np.uint8)
after = process_memory()
print(after.resident_bytes - before, after.peak_bytes - after.resident_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_memory_that_is_filled_is_counted():
    # in a process of its own, where nothing else gives memory back meanwhile
    told = subprocess.run([sys.executable, "-c", FILL], check=True, capture_output=True, text=True, timeout=60).stdout
    grown, below_peak = map(int, told.split())
    assert grown > (32 << 20) / 2 and below_peak >= 0
