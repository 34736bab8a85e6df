"""Text in, batches out: every bad file is named, every window is drawn once an epoch."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.training import data
from ridgeline.training.data import Document


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"text: .*absent\.txt does not exist"):
        data.load_documents([tmp_path / "absent.txt"])


def test_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        data.load_documents([tmp_path])


def test_empty_file_is_named(tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"text: .*empty\.txt is empty"):
        data.load_documents([tmp_path / "empty.txt"])


def test_bad_utf8_is_named_with_its_offset(tmp_path):
    (tmp_path / "latin1.txt").write_bytes("été".encode() + b"\nna\xefve")
    with pytest.raises(ValueError, match=r"latin1\.txt is not UTF-8: byte 0xef at offset 8"):
        data.load_documents([tmp_path / "latin1.txt"])


def test_file_given_twice_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a")
    with pytest.raises(ValueError, match=r"a\.txt is given twice"):
        data.load_documents([path, path])


def test_documents_are_ordered_by_a_name_that_does_not_depend_on_the_place(tmp_path):
    for place in ("x", "y"):
        for name in ("b/two.txt", "a/one.txt"):
            (tmp_path / place / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place / name).write_text(name)
    x, y = (
        data.load_documents([tmp_path / place / "b/two.txt", tmp_path / place / "a/one.txt"])
        for place in ("x", "y")
    )
    assert x == y == [Document("a/one.txt", "a/one.txt"), Document("b/two.txt", "b/two.txt")]


def test_standard_library_without_tests_tables_and_packages():
    names = [document.name for document in data.stdlib_documents()]
    assert {"argparse.py", "json/decoder.py", "asyncio/tasks.py"} <= set(names)
    assert names == sorted(names)
    for name in names:
        assert not {"test", "tests", "site-packages", "encodings"} & set(Path(name).parts)
        assert (Path(sysconfig.get_paths()["stdlib"]) / name).is_file()


def test_no_sources_is_an_error(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "hidden.py").write_text("x = 1")
    with pytest.raises(FileNotFoundError, match="no Python sources under"):
        data.stdlib_documents(tmp_path)


def test_split_holds_out_whole_files_whatever_their_order():
    documents = [Document(f"{i}.py", "x" * i) for i in range(1, 101)]
    train, held_out = data.split_documents(documents, 0.05)
    assert len(held_out) == 5
    assert sorted(d.name for d in train + held_out) == sorted(d.name for d in documents)
    again = data.split_documents(documents[::-1], 0.05)
    assert {d.name for d in again[1]} == {d.name for d in held_out}


def test_split_of_few_files_holds_out_their_ends():
    text = "line\n" * 100
    train, held_out = data.split_documents([Document("a", text), Document("b", text)], 0.1)
    for kept, out in zip(train, held_out, strict=True):
        assert kept.text + out.text == text
        assert kept.text.endswith("\n")
        assert len(out.text) == 50


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_split_needs_a_proper_fraction(fraction):
    with pytest.raises(ValueError, match="eval_fraction"):
        data.split_documents([Document("a", "text")], fraction)


@settings(max_examples=40, deadline=None)
@given(
    num_tokens=st.integers(40, 400),
    context=st.integers(1, 12),
    size=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_an_epoch_visits_every_window_once(num_tokens, context, size, seed):
    tokens = np.arange(num_tokens, dtype=np.uint16)
    windows = data.window_count(num_tokens, context)
    drawn = np.concatenate(
        [
            data.batch(tokens, seed=seed, index=i, size=size, context=context)
            for i in range(-(-windows // size))
        ]
    )[:windows]
    assert (np.diff(drawn, axis=1) == 1).all()  # each row is a stretch of the text
    starts = np.sort(drawn[:, 0])
    assert (np.diff(starts) == context).all()  # and no two overlap in what they predict
    assert 0 <= starts[0] < context


def test_batches_are_a_function_of_seed_and_index_alone():
    tokens = np.arange(5000, dtype=np.uint16)
    arguments = {"size": 4, "context": 16}
    forward = [data.batch(tokens, seed=3, index=i, **arguments) for i in range(200)]
    for i in reversed(range(200)):
        assert (data.batch(tokens, seed=3, index=i, **arguments) == forward[i]).all()
    assert (data.batch(tokens, seed=4, index=0, **arguments) != forward[0]).any()
    windows = data.window_count(5000, 16)
    assert (forward[windows // 4 + 1] != forward[0]).any()  # another epoch, another order
