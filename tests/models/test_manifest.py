"""The manifest: every way to damage a checkpoint is found, and the file is named."""

import json

import pytest
import torch
from model_cases import byte_tokenizer, tiny_model, tokens
from transformers import AutoModelForCausalLM

from ridgeline.models import RidgelineForCausalLM
from ridgeline.models.manifest import MANIFEST, verify_manifest, write_manifest

FILES = ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json"]


@pytest.fixture
def checkpoint(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    return tmp_path


def test_a_sound_checkpoint_holds(checkpoint):
    assert verify_manifest(checkpoint) is True
    listed = json.loads((checkpoint / MANIFEST).read_text())["files"]
    assert set(FILES) <= set(listed)
    assert set(listed) == {path.name for path in checkpoint.iterdir()} - {MANIFEST}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0], ids=["first", "middle", "last"])
def test_a_flipped_bit_is_found(checkpoint, name, where):
    path = checkpoint / name
    data = bytearray(path.read_bytes())
    data[round(where * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name}: altered, expected SHA-256"):
        RidgelineForCausalLM.from_pretrained(checkpoint)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [-1, 1], ids=["truncated", "extended"])
def test_another_size_is_found(checkpoint, name, change):
    path = checkpoint / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] if change < 0 else data + b" ")
    with pytest.raises(
        ValueError, match=rf"{name}: truncated or altered, .* got {len(data) + change}"
    ):
        RidgelineForCausalLM.from_pretrained(checkpoint)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(checkpoint, name):
    (checkpoint / name).unlink()
    with pytest.raises(ValueError, match=rf"{name}: missing"):
        RidgelineForCausalLM.from_pretrained(checkpoint)


def test_the_auto_class_verifies_too(checkpoint):
    path = checkpoint / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 128
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors: altered"):
        AutoModelForCausalLM.from_pretrained(checkpoint)


def test_a_checkpoint_in_a_subfolder_is_verified(checkpoint, tmp_path):
    inner = tmp_path / "inner"
    model = tiny_model(dtype=torch.float32)
    model.save_pretrained(inner)
    loaded = RidgelineForCausalLM.from_pretrained(tmp_path, subfolder="inner")
    with torch.no_grad():
        assert torch.equal(loaded(tokens(1, 4)).logits, model(tokens(1, 4)).logits)
    (inner / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"inner/config\.json: truncated"):
        RidgelineForCausalLM.from_pretrained(tmp_path, subfolder="inner")


def test_without_a_manifest_a_checkpoint_loads(checkpoint):
    (checkpoint / MANIFEST).unlink()
    assert verify_manifest(checkpoint) is False
    RidgelineForCausalLM.from_pretrained(checkpoint)


DAMAGED = {
    "no json": "{",
    "no object": "[]",
    "no files": "{}",
    "files as a list": '{"files": ["config.json"]}',
    "no size": '{"files": {"config.json": {"sha256": "00"}}}',
    "size as text": '{"files": {"config.json": {"bytes": "1", "sha256": "00"}}}',
    "no digest": '{"files": {"config.json": {"bytes": 1}}}',
    "digest of other letters": '{"files": {"config.json": {"bytes": 1, "sha256": "xy"}}}',
    "path out of the directory": '{"files": {"../config.json": {"bytes": 1, "sha256": "00"}}}',
    "absolute path": '{"files": {"/etc/hosts": {"bytes": 1, "sha256": "00"}}}',
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_manifest_is_named(checkpoint, text):
    (checkpoint / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json: not a readable manifest"):
        RidgelineForCausalLM.from_pretrained(checkpoint)


def test_a_manifest_of_chosen_files(tmp_path):
    for name in ("a.bin", "b.bin", ".hidden"):
        (tmp_path / name).write_bytes(name.encode())
    assert write_manifest(tmp_path, ["a.bin"]) == tmp_path / MANIFEST
    (tmp_path / "b.bin").write_bytes(b"changed")
    assert verify_manifest(tmp_path)
    write_manifest(tmp_path)
    assert list(json.loads((tmp_path / MANIFEST).read_text())["files"]) == ["a.bin", "b.bin"]


def test_a_failed_write_keeps_the_old_manifest(checkpoint, monkeypatch):
    before = (checkpoint / MANIFEST).read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    (checkpoint / "config.json").write_text("{}")
    monkeypatch.setattr("ridgeline.models.manifest.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_manifest(checkpoint)
    assert (checkpoint / MANIFEST).read_bytes() == before
    assert not list(checkpoint.glob(".*"))
