"""Trains or evaluates a speaker network.

python -m speaker.main --config=configs/speaker/quickstart.py --workdir=runs/speaker
python -m speaker.main --workdir=runs/speaker --mode=evaluate
python -m speaker.main --workdir=runs/speaker --mode=evaluate --config.data.trials=mine.txt
"""

from common import app
from speaker import task

if __name__ == "__main__":
    app.run(task.PACKAGE)
