"""A step as TRL's own trainer computes it."""

import os
import tempfile
import warnings
from unittest import mock

from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from ridgeline.bench.dpo.ways import BETA, Pairs, Way

PAD, EOS = "<pad>", "<eos>"


def way(pairs: Pairs) -> Way:
    """``DPOTrainer.compute_loss`` on the batch of its collator, reference precomputed."""
    trainer = _trainer(pairs.model)
    names = ("prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps")
    refs = zip(*(x.tolist() for x in pairs.ref), strict=True)
    examples = [
        dict(zip(names, (*ids, *ref), strict=True))
        for ids, ref in zip(pairs.ids, refs, strict=True)
    ]
    inputs = trainer.data_collator(examples)

    def loss() -> Tensor:
        pairs.model.set_attn_implementation("sdpa")
        return trainer.compute_loss(pairs.model, inputs)

    return Way("TRL", loss, inputs["input_ids"].numel(), pairs.model)


def _trainer(model: LlamaForCausalLM) -> DPOTrainer:
    """A trainer of the model; the text that it must be given is never used."""
    words = Tokenizer(models.WordLevel({PAD: 0, EOS: 1}, unk_token=PAD))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD, eos_token=EOS)
    text = {"prompt": PAD, "chosen": f" {EOS}", "rejected": f" {EOS}"}
    disable_progress_bars()
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, TQDM_DISABLE="1"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", FutureWarning)  # between TRL and transformers
        config = DPOConfig(
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
        return DPOTrainer(model, args=config, processing_class=tokenizer, train_dataset=dataset)
