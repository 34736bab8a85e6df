"""Tiny models, preference data, and both trainers on them, in float64."""

import copy
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl import DPOConfig, DPOTrainer
from trl.trainer import utils

from ridgeline.models import RidgelineConfig, RidgelineForCausalLM
from ridgeline.trl import PrefixSharedDPOConfig, PrefixSharedDPOTrainer

WORDS = [f"w{i}" for i in range(40)]
SPECIAL = ["<pad>", "<eos>", "<user>", "<bot>"]
VOCAB = len(SPECIAL) + len(WORDS)
TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m['role'] == 'user' else '<bot> ' }}"
    "{{ m['content'] }}{{ ' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bot> ' }}{% endif %}"
)
LOSSES = [
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]


def tokenizer(**changes) -> PreTrainedTokenizerFast:
    vocab = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(SPECIAL)
    fields = {"pad_token": "<pad>", "eos_token": "<eos>", "chat_template": TEMPLATE} | changes
    return PreTrainedTokenizerFast(tokenizer_object=core, **fields)


def words(rng: random.Random, least: int, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, most))) + " "


def preference_data(count: int = 12, *, conversational: bool = False, seed: int = 0) -> Dataset:
    rng = random.Random(seed)
    pairs = [
        {
            "prompt": words(rng, 2, 12) + " ",
            "chosen": words(rng, 1, 8),
            "rejected": words(rng, 1, 8),
        }
        for _ in range(count)
    ]
    if conversational:
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        pairs = [{k: [{"role": roles[k], "content": v}] for k, v in x.items()} for x in pairs]
    return Dataset.from_list(pairs)


SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    kv = {"num_key_value_heads": 2}
    match name:
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(**SIZES, **kv))
        case "qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(**SIZES, **kv))
        case "mistral":  # a window that ends within the prompt
            model = MistralForCausalLM(MistralConfig(**SIZES, **kv, sliding_window=5))
        case "gemma2":  # windows in every other layer, soft caps of scores and logits
            caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
            config = Gemma2Config(**SIZES, **kv, **caps, sliding_window=5, query_pre_attn_scalar=8)
            config._attn_implementation = "eager"  # the others leave the soft cap out
            model = Gemma2ForCausalLM(config)
        case "gta":
            model = RidgelineForCausalLM(RidgelineConfig(attention=name, **SIZES, **kv))
        case _:
            model = RidgelineForCausalLM(RidgelineConfig(attention=name, **SIZES))
    return model.double()


def trainer(
    shared: bool,
    out: Path,
    model: str | PreTrainedModel = "llama",
    *,
    data: Dataset | None = None,
    ref: PreTrainedModel | str | None = "other",
    peft_config=None,
    eval_dataset=None,
    processing_class=None,
    compute_metrics=None,
    cls=None,
    **options,
) -> DPOTrainer:
    """Ridgeline's trainer or TRL's, in all else the same, with the gradient as the step."""
    model = tiny_model(model) if isinstance(model, str) else copy.deepcopy(model)
    if isinstance(ref, str):  # gradients of a policy that is its own reference hide much
        ref = tiny_model_like(model)
    defaults = {
        "per_device_train_batch_size": 3,
        "per_device_eval_batch_size": 3,
        "max_steps": 2,
        "logging_steps": 1,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "beta": 0.3,
    }
    config = PrefixSharedDPOConfig if shared else DPOConfig
    return (cls or (PrefixSharedDPOTrainer if shared else DPOTrainer))(
        model,
        ref,
        config(str(out), **(defaults | options)),
        train_dataset=preference_data() if data is None else data,
        eval_dataset=eval_dataset,
        processing_class=processing_class or tokenizer(),
        peft_config=peft_config,
        compute_metrics=compute_metrics,
    )


def tiny_model_like(model: PreTrainedModel) -> PreTrainedModel:
    """The same architecture with other weights."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in other.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return other


def work_in_float64(monkeypatch) -> None:
    """Makes float32 islands of transformers (norms, softmax) and of TRL (its head) float64.

    Values in float64 would be rounded there, in other sums on each side: 1e-9 would be noise.
    """
    to, softmax = torch.Tensor.to, F.softmax

    def stay(x: Tensor, *args, **kwargs) -> Tensor:
        narrows = x.dtype == torch.float64 and torch.float32 in (*args, kwargs.get("dtype"))
        return x if narrows else to(x, *args, **kwargs)

    def wide(x: Tensor, dim: int, dtype: torch.dtype | None = None, **kwargs) -> Tensor:
        return softmax(x, dim, dtype=None if x.dtype == torch.float64 else dtype, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", stay)
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x.to(torch.float32))
    monkeypatch.setattr(F, "softmax", wide)
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Float64Head)


class Float64Head:
    """TRL's function of the LM head, which works in float32 always, in its inputs' dtype."""

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[Tensor, ...]:
        logits = F.linear(hidden, weight, bias) * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits / temperature
        log_probs = logits.log_softmax(-1)
        probs = log_probs.exp().detach()
        return (
            log_probs.gather(1, targets[:, None])[:, 0],
            -(probs * log_probs).sum(1).detach(),
            probs.square().sum(1).log(),
            logits.mean(1).detach(),
            logits.argmax(1) == targets,
        )
