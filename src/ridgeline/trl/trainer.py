"""TRL's DPO trainer on rows in which pairs share their prompts."""

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    DataCollator,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer

from ridgeline.models import RidgelineConfig
from ridgeline.training.preference import Counts
from ridgeline.transformers import NAME, masks
from ridgeline.trl.collator import COUNTS, RowCollator
from ridgeline.trl.config import PrefixSharedDPOConfig, refuse
from ridgeline.trl.datasets import PairCounts, check_columns, count_pairs
from ridgeline.trl.forward import RowForward
from ridgeline.trl.probe import refuse_leaks

logger = logging.getLogger(__name__)

_Datasets = (
    Dataset
    | IterableDataset
    | DatasetDict
    | IterableDatasetDict
    | dict[str, Dataset | IterableDataset]
)


class PrefixSharedDPOTrainer(DPOTrainer):
    """``trl.DPOTrainer``, which computes the prompt of a pair once and no padding.

    Arguments, losses, metrics, checkpoints and the pairs of every step are TRL's; the method is
    that of Wang and Hegde (arXiv 2410.20305). What differs:

    - The model's attention becomes ``"ridgeline"``; a model whose attention cannot is refused.
    - The loss of a step is the mean over all its pairs, of all micro-batches and processes. TRL's
      is a mean of means, which differs where the last micro-batch of an epoch is smaller.
    - ``packing/ratio`` (pairs a row), ``packing/row_fill``, ``packing/shared_fraction`` (tokens
      not computed again), ``tokens/logical`` (as TRL would compute them, without padding) and
      ``tokens/physical`` (as computed, without padding) are logged for every micro-batch, summed
      over processes. TRL's ``num_tokens`` counts logical tokens.
    - ``pair_counts`` says for each dataset how many pairs were dropped, cut, or equal.

    Args:
        args: a ``PrefixSharedDPOConfig``; with a ``DPOConfig``, or None, its three options have
            their defaults.
        others: as of ``DPOTrainer``. ``data_collator`` must make batches of TRL's format, padded
            on the right; ``processing_class`` is a tokenizer.

    Raises:
        TypeError, ValueError: an argument is not possible, here or with shared rows; a dataset
            lacks a column or has an empty text.
    """

    _tag_names = ["trl", "dpo", "ridgeline"]  # noqa: RUF012

    def __init__(
        self,
        model: "str | PreTrainedModel | nn.Module",
        ref_model: PreTrainedModel | None = None,
        args: DPOConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: _Datasets | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
    ) -> None:
        _check_models(model, ref_model)
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = PrefixSharedDPOConfig(f"{name.split('/')[-1]}-DPO")
        self._prefix_sharing = getattr(args, "prefix_sharing", True)
        self._packing = getattr(args, "packing", True)
        self._in_rows = self._prefix_sharing or self._packing
        self._rows_ready = False
        self.pair_counts: dict[str, PairCounts] = {}
        if isinstance(train_dataset, Dataset) and not len(train_dataset):
            raise ValueError("train_dataset: expected preference pairs, got none")
        if processing_class is not None:
            _check_tokenizer(processing_class)
        if self._in_rows:
            refuse(args)
            _refuse_adapter(peft_config or getattr(model, "active_peft_config", None))
            args = _with_attention(model, args)
            if ref_model is not None:
                _set_attention("ref_model", ref_model)
                refuse_leaks(ref_model.base_model)
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        self._use_rows()

    def _use_rows(self) -> None:
        """Has batches carry rows and models take them."""
        if not self._in_rows or self._rows_ready:
            return
        if self._is_vlm:
            raise ValueError("processing_class: expected a tokenizer, images cannot share a row")
        if self.aux_loss_enabled:
            raise ValueError(
                "router_aux_loss_coef: expected 0.0 with prefix_sharing or packing (a shared "
                "prompt would count once in the balance of experts), "
                f"got {self.router_aux_loss_coef}"
            )
        self.data_collator = RowCollator(
            self.data_collator,
            self._prefix_sharing,
            self._packing,
            getattr(self.args, "packing_length", None),
            self._tokenizer.pad_token_id,
            self.args.pad_to_multiple_of or 1,
        )
        # A loader that dispatches batches cuts all their tensors to as many entries, rows to 2 N.
        loading = self.accelerator.dataloader_config
        if loading.dispatch_batches:
            logger.warning(
                "accelerator_config: batches with rows are made with dispatch_batches=False"
            )
        loading.dispatch_batches = False
        # The policy is still whole here, except under ZeRO-3; the reference may be sharded already.
        if not self.is_deepspeed_enabled:
            refuse_leaks(_causal(self.model).base_model)
        for model in (self.model, self.ref_model):
            if model is not None:
                model = self.accelerator.unwrap_model(model)
                RowForward(model, _causal(model).base_model)
        self._rows_ready = True

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        self._use_rows()  # the constructor above calls this at its end
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        args: DPOConfig,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        check_columns(dataset_name, dataset)
        _check_tokenizer(processing_class)
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if isinstance(prepared, Dataset):
            counts = count_pairs(dataset_name, prepared, len(dataset), args.max_length)
            self.pair_counts[dataset_name] = counts
            if counts.dropped or counts.truncated or counts.equal:
                logger.warning("%s dataset: %s", dataset_name, counts)
        return prepared

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | None]:
        """The micro-batches of a step, and how many pairs they have on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        pairs = torch.tensor(sum(map(_num_pairs, batches)), device=device)
        return batches, self.accelerator.gather(pairs).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if num_items_in_batch is None:
            return found
        # Backward divides by the micro-batches and averages over processes. What is taken off here
        # is exactly 1 where all of them have as many pairs.
        loss = found[0] if return_outputs else found
        parts = self.current_gradient_accumulation_steps * self.accelerator.num_processes
        weight = _num_pairs(inputs) * parts / num_items_in_batch.double()
        loss = loss * weight.to(loss.dtype)
        return (loss, found[1]) if return_outputs else loss

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        found = super()._compute_loss(model, inputs, return_outputs)
        if self._in_rows:
            self._log_layout("train" if self.model.training else "eval", inputs)
        return found

    def _log_layout(self, mode: str, inputs: dict[str, Any]) -> None:
        logical = inputs["attention_mask"].sum()
        if COUNTS in inputs:
            names = (field.name for field in fields(Counts))
            counts = Counts(**dict(zip(names, inputs[COUNTS].unbind(), strict=True)))
            rows, physical, computed = counts.rows, counts.physical_tokens, counts.row_tokens
        else:
            ids = inputs["input_ids"]
            rows, physical, computed = ids.shape[0], logical, ids.numel()
        found = [_num_pairs(inputs), rows, logical, physical, computed]
        found = torch.stack([torch.as_tensor(x, device=logical.device) for x in found])
        pairs, rows, logical, physical, computed = (
            self.accelerator.gather(found).view(-1, len(found)).sum(0).tolist()
        )
        metrics = self._metrics[mode]
        metrics["packing/ratio"].append(pairs / rows)
        metrics["packing/row_fill"].append(physical / computed)
        metrics["packing/shared_fraction"].append(1 - physical / logical)
        metrics["tokens/logical"].append(logical)
        metrics["tokens/physical"].append(physical)


def _causal(model: nn.Module) -> PreTrainedModel:
    return model.get_base_model() if is_peft_model(model) else model


def _num_pairs(batch: dict[str, Any]) -> int:
    return batch["input_ids"].shape[0] // 2


def _check_models(model: Any, ref_model: Any) -> None:
    expected = "a causal language model of transformers, or a PEFT model of one"
    if not isinstance(model, str) and not _is_model(model):
        raise TypeError(f"model: expected a name, {expected}, got {_kind(model)}")
    if ref_model is not None and not _is_model(ref_model):
        raise TypeError(
            f"ref_model: expected {expected}, or None for the weights that model begins with, got "
            f"{_kind(ref_model)}"
        )


def _is_model(model: Any) -> bool:
    return isinstance(model, nn.Module) and isinstance(_causal(model), PreTrainedModel)


def _kind(x: Any) -> str:
    return repr(x) if x is None or isinstance(x, str) else type(x).__name__


def _check_tokenizer(tokenizer: Any) -> None:
    if isinstance(tokenizer, PreTrainedTokenizerBase) and tokenizer.eos_token_id is None:
        raise ValueError(
            "processing_class: expected a tokenizer with an eos_token, which ends every response "
            "and pads where there is no pad_token, got one without"
        )


def _refuse_adapter(config: Any) -> None:
    if getattr(config, "is_prompt_learning", False):
        raise ValueError(
            "peft_config: expected an adapter of weights with prefix_sharing or packing, "
            f"{config.peft_type} puts tokens before every row instead"
        )


def _with_attention(model: "str | nn.Module", args: DPOConfig) -> DPOConfig:
    """Has the model, or the options it will be loaded with, use Ridgeline's attention."""
    if not isinstance(model, str):
        _set_attention("model", _causal(model))
        return args
    options = dict(args.model_init_kwargs or {})
    given = options.setdefault("attn_implementation", NAME)
    if given != NAME:
        raise ValueError(
            f"model_init_kwargs: expected no attn_implementation, or {NAME!r}, with prefix_sharing "
            f"or packing, got {given!r}"
        )
    config = AutoConfig.from_pretrained(model, trust_remote_code=args.trust_remote_code)
    if isinstance(config, RidgelineConfig):
        del options["attn_implementation"]
    args = copy.copy(args)
    args.model_init_kwargs = options
    return args


def _set_attention(name: str, model: PreTrainedModel) -> None:
    """Switches a model of transformers to Ridgeline's attention; Ridgeline's own have it."""
    if isinstance(model.config, RidgelineConfig):
        return
    masks.refuse_model(model.config)
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise ValueError(
            f"{name}: expected a decoder that calls its attention through transformers' "
            f"AttentionInterface, got {type(model).__name__}; set prefix_sharing and packing to "
            "False to train it"
        )
