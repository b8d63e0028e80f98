"""What is printed when the reader has gone, by processes of their own."""

import subprocess
import sys
import textwrap

import pytest

from common import pipes

WAIT = "sys.stdin.read()  # until the reader has gone\n"


def end_of(body: str, closed: str) -> tuple[int, str]:
    """The status of a program whose `closed` stream has no reader, and what the other said."""
    program = "import os, subprocess, sys\nfrom common import pipes\nwith pipes.quiet_end():\n"
    program += textwrap.indent(WAIT + textwrap.dedent(body), "    ")
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        getattr(process, closed).close()
        process.stdin.close()
        other = process.stdout if closed == "stderr" else process.stderr
        return process.wait(60), other.read()


@pytest.mark.parametrize(
    "body",
    [
        "for i in range(10**6): print(i, flush=True)",  # in the midst
        "for i in range(10**6): print(i)",
        "print('one line')",  # at the end: it stays in the buffer
        "try: print('one line', flush=True)\nfinally: print('on the way out')",
    ],
)
def test_a_reader_that_goes_ends_a_command_quietly(body):
    assert end_of(body, "stdout") == (pipes.CLOSED, "")


def test_errors_nobody_reads_end_it_too():
    assert end_of("print('to stderr', file=sys.stderr)", "stderr") == (pipes.CLOSED, "")


def test_other_broken_pipes_are_errors():
    body = """
        child = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
        child.wait()
        os.write(child.stdin.fileno(), b"text")
    """
    with pytest.raises(BrokenPipeError, match="mine"), pipes.quiet_end():
        raise BrokenPipeError("mine")
    status, said = end_of(body, "stdin")
    assert (status, said.splitlines()[-1:]) == (1, ["BrokenPipeError: [Errno 32] Broken pipe"])


def test_nothing_happens_where_the_reader_stays(capfd):
    with pipes.quiet_end():
        print("text")
    assert capfd.readouterr().out == "text\n"
    with pytest.raises(SystemExit, match="3"), pipes.quiet_end():
        sys.exit(3)
