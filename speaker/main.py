"""Trains or evaluates a speaker network.

python -m speaker.main --config=configs/speaker/quickstart.py --workdir=runs/speaker
python -m speaker.main --workdir=runs/speaker --mode=evaluate
"""

from common import app
from speaker import task

if __name__ == "__main__":
    app.run("speaker", task.make_task, task.close)
