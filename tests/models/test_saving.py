"""Saving and loading: round trips, and what a full disk or a crash leaves behind."""

import json
from pathlib import Path

import pytest
import torch
from model_cases import VARIANTS, byte_tokenizer, tiny_model, tokens
from transformers import AutoModelForCausalLM, PreTrainedModel

from ridgeline.models import RidgelineForCausalLM
from ridgeline.models.manifest import MANIFEST, verify_manifest
from ridgeline.models.saving import staged


def logits(model):
    with torch.no_grad():
        return model(tokens(2, 9), use_cache=False).logits


@pytest.mark.parametrize("attention", VARIANTS)
@pytest.mark.parametrize("tie", [False, True], ids=["apart", "tied"])
def test_round_trip(attention, tie, tmp_path):
    model = tiny_model(attention, torch.float32, tie_word_embeddings=tie)
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(loaded) is RidgelineForCausalLM
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(model))
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tie
    # No directory but the model's, no staging left, nothing executable in it.
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", MANIFEST}


def test_dtype_of_the_file_is_kept_or_chosen(tmp_path):
    tiny_model(dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert RidgelineForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    loaded = RidgelineForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert loaded.dtype == torch.float32


def test_a_save_over_another_replaces_all_of_it(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    tiny_model("gqa", torch.float32).save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = tiny_model("gla", torch.float32)
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    assert torch.equal(logits(RidgelineForCausalLM.from_pretrained(tmp_path)), logits(model))
    assert (tmp_path / "README.md").read_text() == "mine"
    listed = json.loads((tmp_path / MANIFEST).read_text())["files"]
    assert "tokenizer.json" in listed
    assert "README.md" not in listed


def test_shards_load(tmp_path):
    model = tiny_model(dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert torch.equal(logits(RidgelineForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_a_given_state_dict_is_what_is_saved(tmp_path):
    model, other = tiny_model(dtype=torch.float32), tiny_model(dtype=torch.float32)
    torch.nn.init.zeros_(other.model.norm.weight)
    model.save_pretrained(tmp_path, state_dict=other.state_dict())
    assert torch.equal(logits(RidgelineForCausalLM.from_pretrained(tmp_path)), logits(other))


def test_other_processes_write_nothing(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model", is_main_process=False)
    assert not list(tmp_path.iterdir())


def fail_in_the_weights(monkeypatch):
    original = PreTrainedModel.save_pretrained

    def save(self, directory, **kwargs):
        original(self, directory, **kwargs)
        weights = Path(directory, "model.safetensors")
        weights.write_bytes(weights.read_bytes()[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)


def fail_in_fsync(monkeypatch):
    def fsync(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ridgeline.models.manifest.os.fsync", fsync)


def fail_in_safetensors(monkeypatch):
    from safetensors import SafetensorError

    def save_file(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", save_file)


FULL_DISKS = [fail_in_the_weights, fail_in_fsync, fail_in_safetensors]


@pytest.mark.parametrize("fail", FULL_DISKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("exists", [False, True], ids=["new", "over another"])
def test_a_full_disk_changes_nothing(fail, exists, tmp_path, monkeypatch):
    target = tmp_path / "model"
    old = tiny_model("gqa", torch.float32)
    if exists:
        old.save_pretrained(target)
    with monkeypatch.context() as broken:
        fail(broken)
        with pytest.raises(OSError, match=rf"{target}: cannot save.*No space left") as error:
            tiny_model(dtype=torch.float32).save_pretrained(target)
    assert "nothing was changed" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == (["model"] if exists else [])
    if exists:
        assert torch.equal(logits(RidgelineForCausalLM.from_pretrained(target)), logits(old))


def test_a_crash_amid_the_move_is_found_on_loading(tmp_path, monkeypatch):
    tiny_model("gqa", torch.float32).save_pretrained(tmp_path)
    replace = Path.replace

    def killed(self, target):
        if self.name == "model.safetensors":
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            tiny_model("gla", torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json: truncated or altered"):
        verify_manifest(tmp_path)


def test_an_interrupt_while_writing_leaves_no_trace(tmp_path):
    def interrupted():
        with staged(tmp_path / "model") as staging:
            (staging / "weights").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_relative_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model(dtype=torch.float32).save_pretrained(".")
    assert verify_manifest(tmp_path)


def test_weights_cut_short_without_a_manifest_name_the_directory(tmp_path):
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    (tmp_path / MANIFEST).unlink()
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ValueError, match=f"{tmp_path}: weights that cannot be read"):
        RidgelineForCausalLM.from_pretrained(tmp_path)


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path):
    model = tiny_model(dtype=torch.float32)
    weights = model.state_dict()
    del weights["model.layers.1.self_attn.v_up"]
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks model\.layers\.1\.self_attn\.v_up"):
        RidgelineForCausalLM.from_pretrained(tmp_path)


def test_loading_info_is_given_to_those_who_ask(tmp_path):
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    model, info = RidgelineForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, RidgelineForCausalLM)
    assert not info["missing_keys"]


def test_a_file_in_place_of_the_directory(tmp_path):
    target = tmp_path / "model"
    target.write_text("a file")
    with pytest.raises(ValueError, match="model: expected a directory, got a file"):
        tiny_model().save_pretrained(target)
    assert target.read_text() == "a file"


def test_formats_that_can_run_code_are_refused(tmp_path):
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use_safetensors"):
        RidgelineForCausalLM.from_pretrained(tmp_path, use_safetensors=False)
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(OSError, match="safetensors"):
        RidgelineForCausalLM.from_pretrained(tmp_path)
