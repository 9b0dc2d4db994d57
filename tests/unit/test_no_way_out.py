"""The tests' own promise: neither they nor what they start can reach anything outside this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = "from pathlib import Path; print(Path('/proc/net/dev').read_text(), Path('/proc/net/route').read_text())"


@pytest.mark.skipif(not os.environ.get("FINELAUNCH_TESTS_WALL"), reason="no network namespace around these tests")
def test_what_the_tests_start_has_loopback_and_no_route() -> None:
    seen = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True).stdout
    interfaces = [line.split(":")[0].strip() for line in seen.splitlines() if ":" in line]
    assert interfaces == ["lo"]
    routes = [line for line in Path("/proc/net/route").read_text().splitlines()[1:] if line.strip()]
    assert routes == []


def test_the_tests_own_process_is_refused_a_way_out() -> None:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, pytest.raises(RuntimeError, match="loopback"):
        probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737): nobody's; connecting UDP sends nothing
