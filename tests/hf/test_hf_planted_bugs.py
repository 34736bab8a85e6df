"""The tests of this folder find bugs that are planted on purpose; without one they pass."""

import sys
from dataclasses import dataclass
from functools import cache

import pytest
import test_hf_generate as generate
import test_hf_growing_cache as growing
import test_hf_inputs_of_a_forward as forwards
import test_hf_latent as latent
import test_hf_refusals as refusals
import test_hf_rows as rows
import test_hf_support as support
import test_hf_trees as trees
import torch
from hf_cases import tiny
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from planting import plant


@cache
def model(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    return tiny(name, dtype)


def find_padding() -> None:
    for kind in rows.PADDED:
        rows.test_padded_rows(model("gemma2"), kind, use_cache=True)
    rows.test_padding_changes_no_real_token(model("llama"))


def find_packing() -> None:
    for count in (1, 2):
        rows.test_positions_that_restart_are_documents(model("mistral"), count, use_cache=True)
        rows.test_positions_that_restart_are_documents(model("mistral"), count, use_cache=False)
    rows.test_documents_in_padded_rows(model("llama"))
    rows.test_cu_seq_lens(model("gemma2"), None)


def find_chunks() -> None:
    for kind in ("none", "left", "hole"):
        rows.test_a_chunk_behind_cached_tokens(model("gemma2"), kind)


def find_trees() -> None:
    for name in trees.TREES:
        trees.test_each_sequence_is_as_alone(model("mistral"), name, use_cache=False)
    for padding in ("own-ends", "right", "left"):
        trees.test_rows_of_different_trees_and_padding(model("gemma2"), padding)
    trees.test_gradients(model("llama"), "pair")


def find_autocast() -> None:
    trees.test_autocast("mistral")


def find_steps() -> None:
    for name in ("gemma2", "gemma3"):
        for kind in generate.CACHES:
            generate.test_logits_of_steps(kind, name, padded=True)
            generate.test_logits_of_steps(kind, name, padded=False)


def find_greedy() -> None:
    for kind in generate.CACHES:
        with pytest.MonkeyPatch.context() as monkeypatch:
            decoded = generate.count_calls(monkeypatch)
            generate.test_greedy_tokens(model("gemma2", torch.float32), kind, decoded)


def find_holes() -> None:
    generate.test_holes_among_cached_tokens(tiny("llama", torch.float32))


def find_latents() -> None:
    latent.test_steps_in_float64("v3")


def find_adapters() -> None:
    ours = latent.use_latent_cache(latent.MODELS["v3"](1).eval())
    latent.test_an_adapter_is_not_decoded_without_its_weights((None, ours))


def find_growing() -> None:
    for change in growing.CHANGES:
        for length in (1, 300):
            growing.test_equal_to_dynamic_cache(change, length)
    growing.test_tokens_stay_where_they_are()
    growing.test_gradients_flow_through_new_tokens()
    growing.test_made_in_inference_mode_and_used_outside()
    growing.test_windows_are_left_to_transformers()


def find_forwards() -> None:
    llama = model("llama", torch.float32)
    forwards.test_positions_that_are_written_through_numpy(llama)
    forwards.test_values_are_compared_within_a_forward()
    forwards.test_another_tensor_is_another_input()
    forwards.test_a_new_forward_forgets()
    for kind in (forwards.DynamicCache, forwards.StaticCache):
        forwards.test_a_mask_that_does_not_grow_with_the_cache(llama, kind)
        forwards.test_a_window_of_one_token_behind_cached_ones(kind)
    for length in (15, 25):
        forwards.test_masks_of_a_wrong_length(llama, length)
    forwards.test_masks_of_a_static_cache_with_a_free_end(llama, 30)


def find_support() -> None:
    for name in support.REFUSED:
        support.test_models_that_never_reach_our_attention(name)
    support.test_a_name_in_the_config_is_no_proof()
    support.test_what_only_a_forward_tells()
    support.test_models_that_pass_stay_as_they_are("llama")
    support.test_another_implementation_is_named()


def find_refusals() -> None:
    llama = model("llama", torch.float32)
    for name in refusals.CALLS:
        refusals.test_calls(llama, name)
    for name in refusals.KINDS:
        refusals.test_models(name)
    for new in (4, 20):
        refusals.test_trees_and_jumps_behind_cached_tokens(llama, new)
    for name in ("position_bias", "cache", "s_aux"):
        refusals.test_options_of_other_attentions(name)
    refusals.test_options_that_make_no_sense("sliding_window", 0, ValueError)
    refusals.test_masks_that_cut_padded_rows()
    refusals.test_masks_that_look_ahead()
    refusals.test_masks_that_only_look_like_ours((1, 1, 1, 5))
    refusals.test_documents_of_a_model_that_keeps_its_positions_to_itself()
    refusals.test_lengths_of_more_rows_than_one(llama)


FINDERS = {
    name.removeprefix("find_"): f for name, f in list(globals().items()) if name.startswith("find_")
}
ATTENTION, INPUTS, MASKS = (f"transformers.{n}" for n in ("attention", "inputs", "masks"))
DECODE, WINDOWS, LATENT = (f"transformers.{n}" for n in ("decode", "windows", "latent"))
CACHE, MEMO, ROWS = "transformers.cache", "transformers.memo", "layers.rows"
SUPPORT = "transformers.support"


@dataclass(frozen=True)
class Mutation:
    """``old`` becomes ``new`` in ``ridgeline.<module>``; ``finder`` is to find it."""

    finder: str
    module: str
    old: str
    new: str

    @property
    def name(self) -> str:
        return f"{self.module.split('.')[-1]}-{self.finder}-{self.old[:24]}".replace(" ", "_")


PLANTED = [
    Mutation("padding", ROWS, "torch.where(real, stop, _own_end(real))", "stop.expand(real.shape)"),
    Mutation("padding", ROWS, "_own_end(real), 0).amax", "_own_end(real) - 1, 0).amax"),
    Mutation("padding", MASKS, "return real.to(torch.int32)[:", "return None; real[:"),
    Mutation("padding", MASKS, "real[:, : int(stop)].all()", "real[:, : int(stop)].any()"),
    Mutation("packing", ROWS, "return Layout(_ends_of_documents(starts, real))", "pass"),
    Mutation("packing", ROWS, "cummin(1)", "cummax(1)"),
    Mutation("packing", ROWS, "begins[:, 1:], (0, 1)", "begins[:, :-1], (1, 0)"),
    Mutation("packing", ROWS, "ends if real is None else", "ends if True else"),
    Mutation("packing", ATTENTION, "cu_seqlens_q=starts_q,", "cu_seqlens_q=starts_q[[0, -1]],"),
    Mutation("packing", ATTENTION, "cu_seqlens_q=starts_q, cu", "cu_seqlens_q=starts_k - 1, cu"),
    Mutation(
        "chunks",
        ROWS,
        'without past_key_values",\n        )\n    return Layout(None if real is None else',
        'without past_key_values",\n        )\n    return Layout(None if True else',
    ),
    Mutation("chunks", ATTENTION, "x[:, :, :keys]", "x[:, :, keys - length : keys]"),
    Mutation("trees", ATTENTION, "window, pieces = None, _pieces", "pieces = None and _pieces"),
    Mutation("trees", ATTENTION, "softcap=self.softcap", "softcap=0.0"),
    Mutation("trees", ATTENTION, "(window - 1, None)", "(window, None)"),
    Mutation("trees", ATTENTION, "softmax_scale=self.scale", "softmax_scale=0.2"),
    Mutation("trees", WINDOWS, "(ends[:start] > start)", "(ends[:start] >= start)"),
    Mutation("trees", WINDOWS, "- window + 1, 0)", "- window + 2, 0)"),
    Mutation("trees", WINDOWS, "int(deepest) < window", "int(deepest) <= window"),
    Mutation("trees", ROWS, "torch.where(real, subtree_end, _own_end(real))", "subtree_end"),
    Mutation("trees", ROWS, "ended.cumsum(1)", "ended.cumsum(1) + 1"),
    Mutation("trees", ROWS, "fine if real is None else fine | ~real", "fine"),
    Mutation("autocast", INPUTS, "if not torch.is_autocast_enabled(device)", "if True"),
    Mutation("steps", DECODE, "(window - 1, None)", "(window, None)"),
    Mutation("steps", DECODE, "softcap=softcap", "softcap=0.0"),
    Mutation("steps", DECODE, "(row + begin)[:, None]", "row[:, None]"),
    Mutation("steps", DECODE, "end - begin", "end"),
    Mutation("steps", DECODE, "(token, token, head, last)", "(token, token, token, last)"),
    Mutation(
        "steps", MASKS, "stop = q_offset + q_length - kv_offset", "stop = q_offset + q_length"
    ),
    Mutation("steps", MASKS, "attention_mask[:, offset : offset", "attention_mask[:, : offset"),
    Mutation("greedy", MASKS, "real.int().argmax(1, keepdim=True)", "0 * last"),
    Mutation("steps", MASKS, "if real is None and tight", "if real is None"),
    Mutation("holes", MASKS, "elif not whole:", "elif False:"),
    Mutation("holes", INPUTS, "return mask[:, 0, 0] != 0", "return mask[:, 0, 0] >= 0"),
    Mutation("latents", LATENT, "_by_head(q_nope, k_up)", "_by_head(q_nope, v_up[:, :12])"),
    Mutation("latents", LATENT, "softmax_scale=scale", "softmax_scale=32**-0.5"),
    Mutation("latents", ATTENTION, "latent.expand(module, key, value)", "key, value"),
    Mutation("adapters", LATENT, "type(layer.kv_b_proj) is not nn.Linear", "False"),
    Mutation("growing", CACHE, "old.data_ptr() == store.data_ptr()", "True"),
    Mutation("growing", CACHE, "store.shape[2] < total", "store.shape[2] < length"),
    Mutation("growing", CACHE, "max(total // 2, MIN_ROOM)", "0"),
    Mutation("growing", CACHE, "torch.inference_mode(False)", "torch.no_grad()"),
    Mutation("growing", CACHE, "if torch.is_grad_enabled() and (", "if False and ("),
    Mutation("growing", CACHE, "type(x) is DynamicLayer", "isinstance(x, DynamicLayer)"),
    Mutation("forwards", MEMO, "known[0]() is x and", "known is not None and"),
    Mutation("forwards", MEMO, "torch.equal(known[2], x)", "True"),
    Mutation("forwards", MEMO, "_forwards += 1", "_forwards += 0"),
    Mutation("forwards", MASKS, "if local_size == 1 and", "if False and"),
    Mutation("forwards", MASKS, "elif int(tokens) > got:", "elif False:"),
    Mutation("forwards", INPUTS, "if counted not in (keys, mask.shape[3]):", "if False:"),
    Mutation("forwards", INPUTS, "(keys, mask.shape[3])", "(mask.shape[3],)"),
    Mutation("support", SUPPORT, "refuse_model(config)", "pass"),
    Mutation("support", SUPPORT, 'getattr(x, "_is_stateful", False)', "False"),
    Mutation("support", SUPPORT, "if not model._can_set_attn_implementation():", "if False:"),
    Mutation("support", SUPPORT, 'config._attn_implementation != "ridgeline"', "False"),
    Mutation("support", SUPPORT, "if not torch.equal(first, other):", "if False:"),
    Mutation("support", SUPPORT, "<= TOLERANCE *", "<= 9 *"),
    Mutation("support", SUPPORT, "module.training = training", "pass"),
    Mutation("refusals", ROWS, "known = ~start | (new == 0)", "known = ~start | (new >= 0)"),
    Mutation("refusals", ROWS, "fine = shift == shift.gather(1, root)", "fine = shift <= shift"),
    Mutation(
        "refusals", ROWS, "fine = position_ids.diff() == 1", "fine = position_ids.diff() <= 1"
    ),
    Mutation(
        "refusals",
        ROWS,
        "(position_ids.diff() == 1) | begins",
        "(position_ids >= 0)[:, 1:] | begins",
    ),
    Mutation("refusals", ROWS, "(documents == 0).all()", "(documents >= 0).all()"),
    Mutation(
        "refusals",
        ROWS,
        "((documents.diff() != 0) == (position_ids.diff() != 1))",
        "(documents >= 0)",
    ),
    Mutation("refusals", MASKS, "(documents == 0).all()", "(documents >= 0).all()"),
    Mutation("refusals", MASKS, "    if other:", "    if False:"),
    Mutation("refusals", MASKS, "    if use_vmap:", "    if False:"),
    Mutation("refusals", MASKS, "~ahead.any()", "ahead.any() | True"),
    Mutation("refusals", INPUTS, "if dropout:", "if False:"),
    Mutation("refusals", INPUTS, '    if options.get("output_attentions")', "    if False"),
    Mutation("refusals", INPUTS, "options.get(option) is not None", "False"),
    Mutation("refusals", INPUTS, "x.shape[-1] > MAX_DIM", "x.shape[-1] > 2 * MAX_DIM"),
    Mutation(
        "refusals", INPUTS, "mask.dtype == torch.int32 and mask.dim() == 4", "mask.dim() == 4"
    ),
    Mutation("refusals", INPUTS, "check.tensor(name, cu_seq_lens)", "pass"),
    Mutation("refusals", ATTENTION, 'kind in ("real", "span"):', "False:"),
    Mutation("refusals", ATTENTION, "if span is None and query.shape[2] > 1", "if False"),
    Mutation("refusals", ATTENTION, "or subtree_end is not None)", ")"),
    Mutation(
        "refusals", ATTENTION, 'check.count("sliding_window", sliding_window, minimum=1)', "pass"
    ),
    Mutation(
        "refusals", ATTENTION, 'check.shape("query", self.q', 'check.shape("query", self.q[:1]'
    ),
]


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, f"ridgeline.{bug.module}", bug.old, bug.new, "ridgeline.")
    # The registries of transformers know the functions as they were.
    for registry, module, function in (
        (AttentionInterface, ATTENTION, "attention_forward"),
        (AttentionMaskInterface, MASKS, "row_mask"),
    ):
        current = getattr(sys.modules[f"ridgeline.{module}"], function)
        monkeypatch.setitem(registry._global_mapping, "ridgeline", current)
    for module in (refusals, latent, growing):
        for name in ("attention_forward", "row_mask"):
            if hasattr(module, name):
                current = (
                    AttentionInterface if name == "attention_forward" else AttentionMaskInterface
                )
                monkeypatch.setattr(module, name, current._global_mapping["ridgeline"])
    monkeypatch.setattr(support, "check_model", sys.modules["ridgeline.transformers"].check_model)
    with pytest.raises((Exception, pytest.fail.Exception)):
        FINDERS[bug.finder]()


@pytest.mark.parametrize("finder", ["refusals", "growing", "forwards", "support"])
def test_without_a_bug_nothing_is_found(finder: str) -> None:
    FINDERS[finder]()
