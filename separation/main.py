"""Trains or evaluates a network that extracts a voice.

python -m separation.main --config=configs/separation/quickstart.py --workdir=runs/separation
python -m separation.main --workdir=runs/separation --mode=evaluate
"""

from common import app
from separation import task

if __name__ == "__main__":
    app.run(task.PACKAGE)
