import csv
import json

import matplotlib.image
import pytest

from ridgeline.bench import decode, files, machine, plot, table


def test_record_holds_the_numbers_of_a_row(made_row):
    found = decode.record(made_row(seconds=0.004, peers={"sdpa gqa bf16": 0.08}))
    assert (found["variant"], found["heads"], found["cache_heads"]) == ("gqa", 32, 8)
    assert (found["ms"], found["GB/s"], found["bytes_per_token"]) == (4.0, 33.554, 4096)
    assert (found["percent_of_roof"], found["binding_roof"]) == (83.9, "memory")
    assert (found["torch_sdpa_gqa_bf16_ms"], found["torch_sdpa_gqa_bf16_ratio"]) == (80.0, 20.0)
    assert "no_prefetch_ms" not in found


def test_csv_has_provenance_then_the_rows(tmp_path, rows):
    path = tmp_path / "x.csv"
    files.write_csv(path, [decode.record(r) for r in rows], machine.provenance())
    lines = path.read_text().splitlines()
    heads = [line.split(":")[0] for line in lines if line.startswith("#")]
    assert heads == ["# command", "# commit", "# machine", "# versions", "# date"]
    table_lines = [line for line in lines if not line.startswith("#")]
    found = list(csv.DictReader(table_lines))
    assert [r["variant"] for r in found] == [r.shape.variant for r in rows]
    assert [float(r["ms"]) for r in found] == pytest.approx(
        [r.seconds * 1e3 for r in rows], abs=1e-4
    )
    assert len({len(line.split(",")) for line in table_lines}) == 1


def test_json_has_the_same(tmp_path, rows):
    path = tmp_path / "x.json"
    records = [decode.record(r) for r in rows]
    files.write_json(path, records, machine.provenance())
    found = json.loads(path.read_text())
    assert found["rows"] == records
    assert set(found) == {"command", "commit", "machine", "versions", "date", "rows"}


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("old")

    def fail(part):
        part.write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        files.write_whole(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_refused_before_the_run(tmp_path):
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        files.prepare(None, tmp_path)


def test_plot_is_an_image(tmp_path, rows):
    path = tmp_path / "x.png"
    plot.decode_plot(path, rows, "a machine")
    height, width, _ = matplotlib.image.imread(path).shape
    assert width > 600
    assert height > 200


def test_table_names_every_row_and_peer(rows):
    console = table.console()
    with console.capture() as captured:
        console.print(table.decode_table(rows))
    text = captured.get()
    assert text.count("GLA-2 8") == text.count("GQA 8/8") == 2
    assert "sdpa" in text
    assert "eager" in text


def test_provenance_names_machine_and_versions():
    found = machine.provenance()
    assert found["command"].startswith("ridgeline")
    assert "torch" in found["versions"]
    assert "cores" in found["machine"]
    assert found["commit"]
