"""Every notebook, run from its first cell to its last in a small size."""

import pathlib

import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"
# What follows the cell tagged "parameters".
SMALL = {
    "analysis": 'CONFIG += ":debug"; STEPS = 8; HOURS = 0.02; POINTS = 3',
    "audiovisual": 'CONFIG += ":debug"; STEPS = 8; MIXTURES = 4',
    "generation": 'CONFIG += ":debug"; JUDGE += ":debug"; DATA = []; STEPS = JUDGING = 6',
    "low_rank": 'CONFIG += ":debug"; TRAINED = TRAINED[:2]; STEPS = 8; TUNING = 4; HOURS = 0.02; '
    "POINTS = 3",
    "separation": 'CONFIG += ":debug"; STEPS = 10',
}
PICTURE, SOUND = "image/png", "<audio"
SHOWN = {
    "analysis": {PICTURE: 5, "Hessian of": 1, "principal directions explain": 1, "F(silence)": 1},
    "audiovisual": {PICTURE: 4, SOUND: 5, "<video": 1, "| lips |": 1, "films swapped": 1},
    "generation": {PICTURE: 3, "follow the voice: pitch": 1, "| made faces | real faces |": 1},
    "low_rank": {PICTURE: 6, "| pointwise_1/4 | ": 1, "| rank_1 | block_": 6, "| weights | CER": 1},
    "separation": {PICTURE: 3, SOUND: 10, "| all |": 1, "largest difference": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.ipynb")))
def test_it_runs(name, tmp_path):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "clear the outputs"
    (parameters,) = (cell for cell in code if "parameters" in cell.metadata.get("tags", ()))
    parameters.source += f"\n{SMALL[name]}; FOLDER = {str(tmp_path)!r}"
    resources = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    shown = "\n".join(str(output) for cell in code for output in cell.outputs)
    assert {text: shown.count(text) for text in SHOWN[name]} == SHOWN[name]
