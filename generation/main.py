"""Trains or evaluates a network that draws a face from a voice, or makes a voice from a face, or
one that these need.

python -m generation.main --config=configs/generation/quickstart.py --workdir=runs/faces
python -m generation.main --workdir=runs/faces --mode=evaluate --config.judge=runs/matcher
"""

from common import app
from generation import task

if __name__ == "__main__":
    app.run(task.PACKAGE)
