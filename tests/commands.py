"""Commands as a user gives them: as processes, or in this one where only the message counts."""

import contextlib
import logging
import pathlib
import runpy
import subprocess
import sys
import warnings
from unittest import mock

import pytest
from absl.testing import flagsaver

from common import app

ROOT = pathlib.Path(__file__).parents[1]


def start(module: str, *options: object, **settings) -> subprocess.Popen:
    """`python -m module options`, running; `settings` go to Popen."""
    line = [sys.executable, "-m", module, *map(str, options)]
    return subprocess.Popen(line, cwd=ROOT, text=True, **settings)


def run(module: str, *options: object, **settings) -> subprocess.CompletedProcess:
    """`python -m module options`, ended well; what it said is in `stdout` and `stderr`."""
    return fails(module, *options, code=0, **settings)


def fails(module: str, *options: object, code: int, **settings) -> subprocess.CompletedProcess:
    """`python -m module options`, ended with `code` and without a traceback."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(module, *options, **pipes, **settings) as process:
        stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr, stderr
    return subprocess.CompletedProcess(process.args, code, stdout, stderr)


def message(module: str, *options: object) -> str:
    """The one message with which `python -m module options` stops, run in this process.

    What a command sets for its whole process is put back, or left alone.
    """
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    with contextlib.ExitStack() as stack:
        stack.enter_context(flagsaver.flagsaver())
        stack.enter_context(mock.patch.object(sys, "argv", [module, *map(str, options)]))
        stack.enter_context(mock.patch.object(app, "keep_memory"))
        stack.enter_context(mock.patch.object(app, "use_compile_cache"))
        stack.callback(root.setLevel, level)
        stack.callback(setattr, root, "handlers", handlers)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", DeprecationWarning)  # as in a process
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module(module, run_name="__main__")
    text = stopped.value.code
    assert isinstance(text, str), f"ended with {text}, not with a message"  # so with exit code 1
    return text
