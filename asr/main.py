"""Trains or evaluates a recogniser.

python -m asr.main --config=configs/asr/quickstart.py --workdir=runs/quickstart
python -m asr.main --workdir=runs/quickstart --mode=evaluate
"""

from asr import task
from common import app

if __name__ == "__main__":
    app.run("asr", task.make_task, task.close)
