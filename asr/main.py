"""Trains or evaluates a recogniser.

python -m asr.main --config=configs/asr/quickstart.py --workdir=runs/quickstart
python -m asr.main --workdir=runs/quickstart --mode=evaluate
python -m asr.main --workdir=runs/an4 --mode=evaluate --config.data.root=new.tsv
"""

from asr import task
from common import app

if __name__ == "__main__":
    app.run(task.PACKAGE)
