"""Commands as a user gives them: as processes, or in this one where only the message counts."""

import contextlib
import pathlib
import runpy
import subprocess
import sys
import warnings
from unittest import mock

import pytest

from common import app

ROOT = pathlib.Path(__file__).parents[1]
# What `app.command` sets for a whole process.
WHOLE_PROCESS = ("keep_memory", "set_up_logging", "use_compile_cache")


def start(module: str, *options: object, **settings) -> subprocess.Popen:
    """`python -m module options`, running; `settings` go to Popen."""
    line = [sys.executable, "-m", module, *map(str, options)]
    return subprocess.Popen(line, cwd=ROOT, text=True, **settings)


def run(module: str, *options: object, code: int = 0, **settings) -> subprocess.CompletedProcess:
    """`python -m module options`, ended with `code`; what it said is in `stdout` and `stderr`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(module, *options, **pipes, **settings) as process:
        stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr, stderr
    return subprocess.CompletedProcess(process.args, code, stdout, stderr)


def message(module: str, *options: object) -> str:
    """The message with which `python -m module options` stops with exit code 1, in this process.

    What a command sets for its whole process stays as the tests have it.
    """
    with contextlib.ExitStack() as stack:
        for name in WHOLE_PROCESS:
            stack.enter_context(mock.patch.object(app, name))
        stack.enter_context(contextlib.chdir(ROOT))
        stack.enter_context(mock.patch.object(sys, "argv", [module, *map(str, options)]))
        stack.enter_context(warnings.catch_warnings())
        # Other tests may have imported the module: then it runs a second time, which is meant.
        warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module(module, run_name="__main__")
    text = stopped.value.code
    assert isinstance(text, str), f"ended with {text}, not with a message"
    return text
