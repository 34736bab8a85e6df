"""A step as trainers compute it, TRL's own and ours: with the metrics that both log."""

import os
import tempfile
import warnings
from unittest import mock

from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from ridgeline.bench.dpo.ways import BETA, OURS, TRL, Pairs, Way
from ridgeline.transformers import NAME
from ridgeline.trl import PrefixSharedDPOConfig, PrefixSharedDPOTrainer, collator

PAD, EOS = "<pad>", "<eos>"


def trl(pairs: Pairs) -> Way:
    """``DPOTrainer`` on the padded batch of its collator."""
    trainer = _trainer(pairs.model, DPOTrainer, DPOConfig)
    inputs = _inputs(trainer, pairs)
    return _way(TRL, trainer, inputs, inputs["input_ids"], "sdpa")


def ridgeline(pairs: Pairs) -> Way:
    """``PrefixSharedDPOTrainer`` with its default options."""
    trainer = _trainer(pairs.model, PrefixSharedDPOTrainer, PrefixSharedDPOConfig)
    inputs = _inputs(trainer, pairs)
    return _way(OURS, trainer, inputs, inputs[collator.INPUT_IDS], NAME)


def _way(
    name: str, trainer: DPOTrainer, inputs: dict[str, Tensor], computed: Tensor, attention: str
) -> Way:
    def loss() -> Tensor:
        trainer.model.set_attn_implementation(attention)
        return trainer.compute_loss(trainer.model, inputs)

    return Way(name, loss, computed.numel(), trainer.model)


def _inputs(trainer: DPOTrainer, pairs: Pairs) -> dict[str, Tensor]:
    """The trainer's batch, with the reference's log-probabilities."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps")
    refs = zip(*(x.tolist() for x in pairs.ref), strict=True)
    return trainer.data_collator(
        [
            dict(zip(names, (*ids, *ref), strict=True))
            for ids, ref in zip(pairs.ids, refs, strict=True)
        ]
    )


def _trainer(
    model: LlamaForCausalLM, kind: type[DPOTrainer], options: type[DPOConfig]
) -> DPOTrainer:
    """A trainer of the model; the text that it must be given is never used."""
    words = Tokenizer(models.WordLevel({PAD: 0, EOS: 1}, unk_token=PAD))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD, eos_token=EOS)
    text = {"prompt": PAD, "chosen": f" {EOS}", "rejected": f" {PAD} {EOS}"}
    disable_progress_bars()
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, TQDM_DISABLE="1"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", FutureWarning)  # between TRL and transformers
        config = options(
            folder,
            beta=BETA,
            bf16=False,
            disable_tqdm=True,
            gradient_checkpointing=False,
            max_length=None,
            precompute_ref_log_probs=True,
            report_to="none",
            use_cpu=True,
        )
        dataset = Dataset.from_list([text])
        return kind(model, args=config, processing_class=tokenizer, train_dataset=dataset)
