"""The measurement of every task's steps runs, small, on a CPU."""

import math

import jax

from benchmarks import accelerator


def cells(capsys):
    """The rows of the printed table by name."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    head, *rows = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines)
    assert head == list(accelerator.COLUMNS)
    return {row[0]: dict(zip(head[1:], row[1:])) for row in rows}


def test_small_rows_of_every_kind(capsys):
    chosen = ["contextnet-s bfloat16 train", "loss float32", "sharded", "xvector bfloat16 eval"]
    assert accelerator.main(["--small", "--devices=2", "--minutes=30", "--only", *chosen]) == 0
    found = cells(capsys)
    assert list(found) == [
        "asr contextnet-s bfloat16 train",
        "asr transducer loss float32",
        "asr ctc loss float32",
        "speaker xvector bfloat16 train, sharded classes",
        "speaker xvector bfloat16 evaluate",
        "speaker margin loss float32",
    ]
    for name, row in found.items():
        unknown = {column for column, cell in row.items() if cell == "-"}
        # Losses are not about audio.
        assert unknown == ({"audio s/s"} if "loss" in name else set())
        for column in accelerator.COLUMNS[2:]:
            if column not in unknown:
                value = float(row[column].removesuffix(" %").replace(",", ""))
                assert math.isfinite(value)
                assert value > 0 or column in ("compile s", "MiB")  # rounded


def test_a_row_that_fails_is_named_and_the_others_go_on(capsys, monkeypatch):
    def fails(size):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory\nand more")

    rows = {"first": fails, "second": accelerator.margin_loss}
    monkeypatch.setattr(accelerator, "ROWS", rows)
    assert accelerator.main(["--small", "--devices=1", "--minutes=30"]) == 1
    found = cells(capsys)
    assert list(found["first"].values()) == ["failed: RESOURCE_EXHAUSTED: no memory"]
    assert float(found["second"]["median ms"]) > 0
    assert accelerator.main(["--small", "--devices=1", "--minutes=0"]) == 0
    assert "not begun" in str(cells(capsys)["second"])
