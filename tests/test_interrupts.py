"""A program obeys signals wherever it waits, even in C code that never returns, and logs what it waits for."""

import signal
import subprocess
import sys

import pytest

from simclrv2_tf.interrupts import SIGNALS

# Shorter times; a lock in C that is never released and no signal interrupts; and a computation in C of one second.
PROGRAM = """
import contextlib, ctypes, hashlib, logging, os, signal, sys, threading, time
from simclrv2_tf import interrupts
from simclrv2_tf.interrupts import SignalWatch, end_process, scratch_dir, waiting
from simclrv2_tf.runs.signals import StopRequest

logging.basicConfig(format="%(message)s")
interrupts.GRACE_SECONDS, interrupts.IDLE_SECONDS, interrupts.TICK_SECONDS = GRACE, 0.4, 0.1
mutex = ctypes.create_string_buffer(64)

def wait_in_python():
    print("ready", flush=True)
    threading.Event().wait()

def report_waiter():
    while mutex.raw[0] != 2:  # what glibc sets when a thread waits
        time.sleep(0.01)
    print("ready", flush=True)

def wait_in_c():
    threading.Thread(target=report_waiter, daemon=True).start()
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)

def compute():
    print("ready", flush=True)
    end = time.process_time() + 1
    while time.process_time() < end:
        hashlib.pbkdf2_hmac("sha1", b"", b"", 10**5)

"""


@pytest.fixture(autouse=True)
def fresh_keras():
    """Overrides the fixture for all tests: nothing here uses Keras."""


def run(code, *numbers, grace=0.2, **options):
    """Runs a program, sends it signals as soon as it is ready; returns its status and its output."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("GRACE,", f"{grace},") + code],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
    )
    assert program.stdout.readline() == "ready\n", program.stderr.read()
    for number in numbers:
        program.send_signal(number)
    out, err = program.communicate(timeout=60)
    return program.returncode, out, err


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("wait", ["wait_in_python", "wait_in_c"])
def test_a_signal_ends_a_program_that_waits(wait, number):
    code = f"with SignalWatch(), waiting('the moon'), contextlib.suppress(KeyboardInterrupt): {wait}()\nsys.exit(130)"
    status, _, err = run(code, number)
    lines = [f"{number.name}: stopping; repeat to stop now."]
    lines += [f"{number.name}: stopped while waiting for the moon"] if wait == "wait_in_c" else []
    assert status == 128 + number and err.split("\n")[1:-1] == lines


@pytest.mark.parametrize("wait", ["wait_in_python", "wait_in_c"])
def test_a_second_signal_ends_a_program_at_once(wait):
    ended, _, _ = run(f"with SignalWatch(): {wait}()", signal.SIGINT, signal.SIGTERM, grace=50)
    assert ended in {128 + number for number in SIGNALS[:2]} | {-number for number in SIGNALS[:2]}


STEP = """
with SignalWatch():
    with StopRequest() as stop, waiting("the moon"):
        {step}()
    print("saved", stop.signal.name)
    stop.obey()
"""


@pytest.mark.parametrize("number", SIGNALS[1:])
def test_a_step_that_computes_is_finished_and_one_that_waits_is_not(number):
    status, out, err = run(STEP.format(step="compute"), number)
    assert (status, out) == (128 + number, f"saved {number.name}\n")
    assert err == f"\n{number.name}: stopping after this step; repeat to stop now.\n"
    status, out, err = run(STEP.format(step="wait_in_c"), number)
    assert (status, out) == (128 + number, "")
    assert err.endswith(f"repeat to stop now.\n{number.name}: stopped while waiting for the moon\n")


def test_an_accelerator_is_given_time_to_end_its_step():
    """The host waits in C for the device, whose steps usually take longer; then a second signal is needed."""
    step = STEP.format(step="wait_in_c").replace('"the moon"', '"the moon", usual_seconds=50')
    status, _, err = run(f"threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT)).start()\n{step}", signal.SIGTERM)
    assert status == 128 + signal.SIGINT and "waiting for" not in err


def test_a_terminal_that_closes_sends_sighup_twice():
    status, out, _ = run(STEP.format(step="compute"), signal.SIGHUP, signal.SIGHUP)
    assert (status, out) == (128 + signal.SIGHUP, "saved SIGHUP\n")


def test_a_program_under_nohup_goes_on():
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    status, out, err = run("with SignalWatch(): compute()\nprint('done')", signal.SIGHUP, **ignore)
    assert (status, out, err) == (0, "done\n", "")


def test_a_program_that_would_hang_at_its_exit_ends():
    code = "import atexit\natexit.register(wait_in_c)\nwith SignalWatch(): wait_in_python()"
    status, _, err = run(code, signal.SIGTERM)
    assert status == 128 + signal.SIGTERM and err.endswith("SIGTERM: stopped while waiting for another process\n")


def test_the_reason_is_logged_while_a_program_waits():
    code = "interrupts.REPORT_SECONDS = 0.2\nwith SignalWatch(), waiting('the moon'): time.sleep(2)"
    status, _, err = run(f"print('ready', flush=True)\n{code}")
    assert status == 0 and err.splitlines()[:2] == ["waiting for the moon, for 0 s"] * 2


def test_nothing_is_logged_while_a_program_computes():
    code = "interrupts.REPORT_SECONDS = 0.2\nwith SignalWatch(), waiting('the moon'): compute()"
    assert run(code)[2] == ""


def test_a_wait_has_a_timeout():
    code = "with SignalWatch(), waiting('x', timeout=0.3, message='--worker_timeout=1: late'): wait_in_c()"
    assert run(code) == (2, "", "error: --worker_timeout=1: late\n")


@pytest.mark.parametrize("end", ["end_process(3)", "sys.exit(3)", "raise SystemExit(3)"])
def test_no_scratch_folder_is_left(end, tmp_path):
    code = f"open(scratch_dir('scratch-', '{tmp_path}') + '/file', 'w').close()\nprint('ready', flush=True)\n{end}"
    assert run(code)[0] == 3 and not list(tmp_path.iterdir())
