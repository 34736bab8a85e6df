"""What cannot be done is refused with a sentence, never done wrongly."""

from collections.abc import Callable

import pytest
import torch
from hf_cases import MODELS, VOCAB, tiny, tokens
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from ridgeline import subtree_end
from ridgeline.transformers import attention_forward, row_mask

PAIR = subtree_end.of_pair(5, 2, 3)
LENGTH = len(PAIR.subtree_end)
TREE = {"position_ids": PAIR.position_ids[None], "subtree_end": PAIR.subtree_end[None]}
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return tiny("llama", torch.float32)


def jump(to: int) -> Tensor:
    return torch.cat((torch.arange(6), torch.arange(to, to + LENGTH - 6)))[None]


def some_mask(dtype: torch.dtype) -> Tensor:
    return torch.ones(1, 1, LENGTH, LENGTH, dtype=dtype)


CALLS: dict[str, tuple[dict, type[Exception], str]] = {
    "tree-without-its-ends": (
        {"position_ids": PAIR.position_ids[None]},
        ValueError,
        r"^position_ids: .*need subtree_end$",
    ),
    "jump-ahead": ({"position_ids": jump(8)}, ValueError, "^position_ids: .*another jump"),
    "jump-back": ({"position_ids": jump(3)}, ValueError, "^position_ids: .*another jump"),
    "tree-without-positions": (
        {"subtree_end": PAIR.subtree_end[None]},
        ValueError,
        "^position_ids: .*as subtree_end has it",
    ),
    "positions-of-another-tree": (
        {**TREE, "position_ids": subtree_end.of_pair(5, 1, 4).position_ids[None]},
        ValueError,
        "^position_ids: .*as subtree_end has it",
    ),
    "int64-ends": (
        {**TREE, "subtree_end": PAIR.subtree_end[None].long()},
        TypeError,
        "^subtree_end: expected dtype int32, got int64",
    ),
    "flat-ends": (
        {**TREE, "subtree_end": PAIR.subtree_end},
        ValueError,
        r"^subtree_end: expected shape \[1, 11\]",
    ),
    "list-of-ends": (
        {**TREE, "subtree_end": PAIR.subtree_end.tolist()},
        TypeError,
        "^subtree_end: expected a torch.Tensor",
    ),
    "end-before-its-key": (
        {"subtree_end": torch.zeros(1, LENGTH, dtype=torch.int32)},
        ValueError,
        "subtree_end",
    ),
    "bool-4d-mask": (
        {"attention_mask": some_mask(torch.bool)},
        ValueError,
        "^attention_mask: expected None or a mask",
    ),
    "float-4d-mask": (
        {"attention_mask": some_mask(torch.float32)},
        ValueError,
        "^attention_mask: expected None or a mask",
    ),
    "probabilities": ({"output_attentions": True}, ValueError, "^output_attentions"),
    "tree-and-lengths": (
        {**TREE, "cu_seq_lens_q": torch.tensor([0, 5, LENGTH])},
        ValueError,
        "^cu_seq_lens_q: expected neither",
    ),
    "lengths-of-queries-alone": (
        {"cu_seq_lens_q": torch.tensor([0, 5, LENGTH])},
        TypeError,
        "^cu_seq_lens_k: expected a torch.Tensor",
    ),
    "jump-within-a-length": (
        {"cu_seq_lens_q": torch.tensor([0, LENGTH]), "cu_seq_lens_k": torch.tensor([0, LENGTH])}
        | {"position_ids": jump(0)},
        ValueError,
        "^position_ids: expected steps of one within each sequence",
    ),
    "lengths-and-padding": (
        {
            "cu_seq_lens_q": torch.tensor([0, LENGTH]),
            "cu_seq_lens_k": torch.tensor([0, LENGTH]),
            "attention_mask": torch.tensor([[0] + [1] * (LENGTH - 1)]),
        },
        ValueError,
        "^cu_seq_lens_q: expected neither",
    ),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_calls(llama: PreTrainedModel, name: str) -> None:
    kwargs, error, message = CALLS[name]
    with pytest.raises(error, match=message):
        llama(tokens(1, LENGTH), use_cache=False, **kwargs)


def test_lengths_of_more_rows_than_one(llama: PreTrainedModel) -> None:
    starts = torch.tensor([0, LENGTH])
    with pytest.raises(ValueError, match=r"^query: expected shape"):
        llama(tokens(2, LENGTH), cu_seq_lens_q=starts, cu_seq_lens_k=starts, use_cache=False)


@pytest.mark.parametrize("new", [4, LENGTH + 9], ids=["few", "many"])
def test_trees_and_jumps_behind_cached_tokens(llama: PreTrainedModel, new: int) -> None:
    ids = tokens(1, new)
    ends = torch.full((1, new), new, dtype=torch.int32)
    with torch.no_grad():
        cache = llama(tokens(1, 6)).past_key_values
        with pytest.raises(ValueError, match=r"^subtree_end: expected no cached tokens"):
            llama(ids, past_key_values=cache, subtree_end=ends)
        cache = llama(tokens(1, 6)).past_key_values
        positions = 6 + torch.arange(new)[None]
        positions[:, -1] = 0
        with pytest.raises(ValueError, match=r"^position_ids: expected steps of one behind"):
            llama(ids, past_key_values=cache, position_ids=positions)


def llama_with(**sizes: object) -> Callable:
    return lambda: LlamaForCausalLM(LlamaConfig(**(SMALL | sizes)))


def gpt_oss() -> PreTrainedModel:
    return GptOssForCausalLM(GptOssConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1))


def qwen3_next() -> PreTrainedModel:
    sizes = {"linear_num_key_heads": 1, "linear_num_value_heads": 1, "num_experts": 2}
    layers = {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2}
    sizes |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts_per_tok": 1}
    return Qwen3NextForCausalLM(Qwen3NextConfig(**(SMALL | sizes | layers)))


def llama4() -> PreTrainedModel:
    sizes = {"intermediate_size_mlp": 32, "num_local_experts": 1, "attention_chunk_size": 4}
    return Llama4ForCausalLM(Llama4TextConfig(**SMALL, **sizes))


def bert() -> PreTrainedModel:
    sizes = {k: v for k, v in SMALL.items() if k not in ("num_key_value_heads", "head_dim")}
    return BertModel(BertConfig(**sizes))


def bidirectional() -> PreTrainedModel:
    sizes = {"sliding_window": 4, "use_bidirectional_attention": True}
    return Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, **sizes))


KINDS: dict[str, tuple[Callable, type[Exception], str]] = {
    "attention-sinks": (gpt_oss, NotImplementedError, "s_aux"),
    "linear-attention": (qwen3_next, NotImplementedError, "'linear_attention' in Qwen3NextConfig"),
    "chunked-attention": (llama4, NotImplementedError, "'chunked_attention'"),
    "encoder": (bert, (NotImplementedError, ValueError), "causal"),
    "looks-ahead": (bidirectional, NotImplementedError, "mask function of its own"),
    "wide-heads": (llama_with(head_dim=264), NotImplementedError, "at most 256, got 264"),
    "dropout": (llama_with(attention_dropout=0.1), NotImplementedError, "^dropout: expected 0"),
}


@pytest.mark.parametrize("name", list(KINDS))
def test_models(name: str) -> None:
    make, error, message = KINDS[name]
    model = make().train()
    model.set_attn_implementation("ridgeline")
    with pytest.raises(error, match=message):
        model(tokens(1, LENGTH))


def test_dropout_is_no_matter_in_evaluation() -> None:
    model = llama_with(attention_dropout=0.1)().eval()
    model.set_attn_implementation("ridgeline")
    assert model(tokens(1, LENGTH)).logits.isfinite().all()


def test_a_model_that_drops_the_keyword_is_refused() -> None:
    """StableLM hands no keywords on: its positions tell that something is missing."""
    model = StableLmForCausalLM(StableLmConfig(**{k: SMALL[k] for k in list(SMALL)[:6]}))
    model.set_attn_implementation("ridgeline")
    with pytest.raises(ValueError, match="need subtree_end"):
        model(tokens(1, LENGTH), **TREE, use_cache=False)


def test_documents_of_a_model_that_keeps_its_positions_to_itself() -> None:
    """Its mask has documents, by a rule that takes a branch for one."""
    documents = torch.zeros(1, 1, 6, 1, dtype=torch.int32)
    q = torch.zeros(1, 2, 6, 16)
    attention_forward(torch.nn.Identity(), q, q, q, documents)
    documents[0, 0, 4:] = 1
    with pytest.raises(ValueError, match=r"^position_ids: .*does not hand them to its attention"):
        attention_forward(torch.nn.Identity(), q, q, q, documents)


@pytest.mark.parametrize("name", ["position_bias", "cache", "s_aux"])
def test_options_of_other_attentions(name: str) -> None:
    q = torch.zeros(1, 2, 3, 16)
    with pytest.raises(NotImplementedError, match=name):
        attention_forward(torch.nn.Identity(), q, q, q, None, **{name: object()})


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [("sliding_window", 0, ValueError), ("sliding_window", 2.0, TypeError)],
    ids=["no-window", "half-window"],
)
def test_options_that_make_no_sense(option: str, value: object, error: type[Exception]) -> None:
    q = torch.zeros(1, 2, 3, 16)
    with pytest.raises(error, match=f"^{option}"):
        attention_forward(torch.nn.Identity(), q, q, q, None, **{option: value})


def test_masks_that_cut_padded_rows() -> None:
    def chunks(b, h, q, k):
        return (k <= q) & (k // 4 == q // 4)

    mask = torch.ones(1, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"every token to see the one before it"):
        row_mask(1, 8, 8, mask_function=chunks, attention_mask=mask)
    cut = row_mask(1, 8, 8, mask_function=chunks)
    q = torch.zeros(1, 2, 8, 16)
    with pytest.raises(ValueError, match="as of chunked attention"):
        attention_forward(torch.nn.Identity(), q, q, q, cut, position_ids=torch.arange(8)[None])


def test_masks_that_look_ahead() -> None:
    """Blocks of which each sees itself whole, as of images in a prompt."""
    with pytest.raises(ValueError, match=r"expected a causal mask, got one that looks ahead"):
        row_mask(1, 8, 8, mask_function=lambda b, h, q, k: (k <= q) | (k // 4 == q // 4))


@pytest.mark.parametrize("shape", [(1, 1, 1, 5), (1, 2, 1, 1), (1, 1, 5, 1)])
def test_masks_that_only_look_like_ours(shape: tuple[int, ...]) -> None:
    q = torch.zeros(1, 2, 5, 16)
    mask = torch.ones(shape, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^attention_mask: expected None or a mask"):
        attention_forward(torch.nn.Identity(), q, q, q, mask)


def test_every_model_of_the_tests_is_not_refused() -> None:
    for name in MODELS:
        assert tiny(name)(tokens(1, LENGTH)).logits.isfinite().all()
