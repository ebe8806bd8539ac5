"""What disturbed a measurement, in words where it was much."""

import os
import subprocess
import sys
import time

import pytest

from secateur import noise
from secateur.noise import Counters, Noise

pytestmark = pytest.mark.alone


def test_counts_are_shares_of_the_cores_time_over_all_parts() -> None:
    parts = [
        Counters(wall=1.0, cores=2, preempted=4, own=0.5, busy=1.5, stolen=0.1, megahertz=2000),
        Counters(wall=3.0, cores=2, preempted=0, own=2.5, busy=2.5, stolen=0.3, megahertz=1900),
    ]
    seen = noise.summed(parts)
    assert seen.preempted_per_s == pytest.approx(1.0)
    assert seen.others == pytest.approx(1.0 / 8)
    assert seen.stolen == pytest.approx(0.4 / 8)
    assert seen.clock_range == pytest.approx(0.05)


def test_what_a_system_does_not_tell_is_no_noise() -> None:
    assert noise.summed([Counters(wall=1.0)]) == Noise(0.0, 0.0, 0.0, None)
    assert str(noise.summed([])) == "none seen"


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Noise(100.0, 0.01, 0.0, None), "100 preemptions a second"),
        (Noise(0.0, 0.4, 0.0, None), "other processes on these cores for 40% of the time"),
        (Noise(0.0, 0.0, 0.2, None), "20% of the time taken by the machine's host"),
        (Noise(0.0, 0.0, 0.0, 0.3), "a clock rate that varied by 30%"),
        (Noise(5.0, 0.01, 0.01, 0.01), "none seen"),
    ],
)
def test_only_what_is_much_is_said(seen: Noise, words: str) -> None:
    assert str(seen) == words


def test_a_busy_process_on_the_same_core_is_seen() -> None:
    core = min(os.sched_getaffinity(0))
    spin = f"import os\nos.sched_setaffinity(0, [{core}])\nwhile True: pass"
    before = noise.snapshot([core])
    with subprocess.Popen([sys.executable, "-c", spin]) as other:
        time.sleep(1.5)
        seen = noise.snapshot([core]).since(before)
        other.kill()
    assert noise.summed([seen]).others > 0.2
