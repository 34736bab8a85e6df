"""The decoder as transformers' model classes: training, cached generation, saving and loading."""

import copy
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, LlamaForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from ridgeline.layers import GroupedLatentAttention, RotaryEmbedding, rows
from ridgeline.models import padding
from ridgeline.models.cache import RidgelineCache
from ridgeline.models.config import RidgelineConfig
from ridgeline.models.decoder import DecoderLayer
from ridgeline.models.llama import config_from_llama
from ridgeline.models.manifest import verify_manifest
from ridgeline.models.saving import staged
from ridgeline.ops.common import check
from ridgeline.ops.common.dispatch import Impl


class RidgelinePreTrainedModel(PreTrainedModel):
    config_class = RidgelineConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("DecoderLayer",)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_sdpa = True

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> "RidgelinePreTrainedModel":
        """As transformers does it, from safetensors only; a local directory's manifest must hold.

        Raises:
            ValueError: a file is truncated or altered (the message names it), the weights cannot
                be read or lack one of the model's, or ``use_safetensors`` is False.
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("use_safetensors: expected True, other formats can run code")
        path = pretrained_model_name_or_path
        if path is not None and os.path.isdir(path):
            verify_manifest(Path(path, kwargs.get("subfolder") or ""))
        wants_info = kwargs.pop("output_loading_info", False)
        try:
            model, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        except SafetensorError as e:
            raise ValueError(f"{path}: weights that cannot be read ({e})") from e
        # transformers would go on with random numbers in their place.
        if info["missing_keys"]:
            raise ValueError(f"{path}: the checkpoint lacks {min(info['missing_keys'])}")
        return (model, info) if wants_info else model

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """As transformers does it, with a manifest of SHA-256 sums, all at once or not at all.

        The manifest covers a tokenizer that is there already. Write one again
        (``ridgeline.models.manifest.write_manifest``) where a file changes afterwards.

        Raises:
            OSError: the files cannot be written, as on a full disk; nothing was changed.
        """
        if not is_main_process:
            return
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", Path(save_directory).name)
        with staged(save_directory) as staging:
            super().save_pretrained(staging, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GroupedLatentAttention):
            init.normal_(module.k_up, std=self.config.initializer_range)
            init.normal_(module.v_up, std=self.config.initializer_range)


class RidgelineModel(RidgelinePreTrainedModel):
    """Embeddings, decoder layers and the final norm."""

    def __init__(self, config: RidgelineConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary = RotaryEmbedding(
            config.rope_dim or config.head_dim,
            scaling=config.rope_parameters,
            max_position=config.max_position_embeddings,
        )
        self.gradient_checkpointing = False
        self.decode_impl: Impl = "auto"
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RidgelineCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        impl: Impl | None = None,
        subtree_end: Tensor | None = None,
    ) -> BaseModelOutputWithPast:
        """As ``RidgelineForCausalLM.forward``, up to the final norm."""
        if self.config.output_attentions if output_attentions is None else output_attentions:
            raise ValueError("output_attentions: expected False, no kernel stores probabilities")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids: expected exactly one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        check.shape("inputs_embeds", x, ("B", "L", self.config.hidden_size))
        if subtree_end is not None:
            if past_key_values is not None or use_cache:
                raise ValueError("subtree_end: expected no cache, got past_key_values or use_cache")
            use_cache = False
        cache = self._cache(past_key_values, use_cache, rows=x.shape[0])
        copies = 1 if cache is None else cache.take_copies(x.shape[0])
        if copies > 1:
            x, attention_mask, position_ids = (
                None if t is None else t[::copies] for t in (x, attention_mask, position_ids)
            )
        batch, length = x.shape[:2]
        lengths = padding.real_lengths(attention_mask, batch, length, cached=cache is not None)
        if subtree_end is not None:
            rows.check_subtree_end(subtree_end, batch, length)
            if lengths is not None:
                raise ValueError("attention_mask: expected padding right of rows with subtree_end")
            if position_ids is None:
                position_ids = rows.depths(subtree_end)
        packed = cache is None and position_ids is not None
        if position_ids is None:
            start = [0] * batch if cache is None else cache.lengths(batch)
            position_ids = padding.positions(start, lengths, length, x.device)
        if position_ids.shape not in ((1, length), (batch, length)):
            got = list(position_ids.shape)
            raise ValueError(f"position_ids: expected shape [{batch}, {length}], got {got}")
        position_ids = position_ids.expand(batch, length)
        # Without a cache to say which tokens are real, padding moves to where nothing sees it.
        moved = lengths is not None and cache is None
        if moved:
            x, position_ids = (padding.to_left(t, lengths) for t in (x, position_ids))
        if packed:
            real = padding.real_tokens(attention_mask, lengths if moved else None, length, x.device)
            subtree_end = rows.of_rows(position_ids, subtree_end, real).subtree_end

        rotary = self.rotary(position_ids)
        impl = self.decode_impl if impl is None else check.name_of_impl(impl)
        states = []
        with nullcontext() if cache is None else cache.step(batch, length, lengths) as step:
            for layer in self.layers:
                states.append(x)
                x = layer(x, rotary, step, impl, subtree_end)
        states.append(self.norm(x))

        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        states = states if output_hidden_states else states[-1:]
        if moved:
            states = [padding.to_right(t, lengths) for t in states]
        if copies > 1:
            cache.batch_repeat_interleave(copies)
            states = [t.repeat_interleave(copies, dim=0) for t in states]
        return BaseModelOutputWithPast(
            last_hidden_state=states[-1],
            past_key_values=cache,
            hidden_states=tuple(states) if output_hidden_states else None,
        )

    def new_cache(self, rows: int, max_length: int = 0, copies: int = 1) -> RidgelineCache:
        """An empty cache with pages for ``rows`` of up to ``max_length`` tokens; it can grow."""
        return RidgelineCache(
            self.layers[0].self_attn.cache_spec(),
            self.config.num_hidden_layers,
            rows=rows,
            max_length=max_length,
            copies=copies,
            dtype=self.dtype,
            device=self.device,
        )

    def _cache(
        self, given: RidgelineCache | None, use_cache: bool | None, rows: int
    ) -> RidgelineCache | None:
        if given is not None:
            if not isinstance(given, RidgelineCache):
                got = type(given).__name__
                raise TypeError(f"past_key_values: expected a RidgelineCache, got {got}")
            return given
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        return self.new_cache(max(rows, 1)) if use_cache else None


class RidgelineForCausalLM(RidgelinePreTrainedModel, GenerationMixin):
    """The decoder with its language-modelling head; ``generate`` uses Ridgeline's own cache."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: RidgelineConfig) -> None:
        super().__init__(config)
        self.model = RidgelineModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_llama(cls, model: LlamaForCausalLM) -> "RidgelineForCausalLM":
        """The same model with Ridgeline's attention and cache; it shares the weights of ``model``.

        Raises:
            TypeError, ValueError: another class of model, or a Llama model with biases.
        """
        if not isinstance(model, LlamaForCausalLM):
            raise TypeError(f"model: expected a LlamaForCausalLM, got {type(model).__name__}")
        with torch.device("meta"):
            ours = cls(config_from_llama(model.config))
        ours.load_state_dict(model.state_dict(), assign=True)
        ours.tie_weights()
        ours.generation_config = copy.deepcopy(model.generation_config)
        return ours.train(model.training)

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Called by ``generate``: the cache for all beams, sized by the longest they can get."""
        if generation_config.cache_implementation is not None:
            raise ValueError(
                "cache_implementation: expected None, the model brings its own cache, "
                f"got {generation_config.cache_implementation!r}"
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            copies = max(generation_config.num_beams, generation_config.num_return_sequences)
            length = min(max_cache_length, self.config.max_position_embeddings)
            model_kwargs["past_key_values"] = self.model.new_cache(
                batch_size * copies, length, copies
            )

    def set_decode_impl(self, impl: Impl) -> None:
        """The implementation of decode attention from now on; "auto" picks the best."""
        self.model.decode_impl = check.name_of_impl(impl)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RidgelineCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        impl: Impl | None = None,
        subtree_end: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss of ``labels``.

        Args:
            input_ids: ``[B, L]``, the new tokens only where ``past_key_values`` holds others.
            attention_mask: ``[B, n]``, n >= L, 0 for padding, which stands left of a row's tokens
                and never enters the cache. Without a cache it may also stand right of them.
            position_ids: ``[B, L]``; by default each row's real tokens count from 0. Without a
                cache, tokens from a 0 on are a document of their own.
            past_key_values: a ``RidgelineCache``; one is made if ``use_cache`` says so. With
                ``labels`` none is made.
            inputs_embeds: ``[B, L, hidden_size]`` in place of ``input_ids``.
            labels: ``[B, L]``, -100 where there is no loss; compared with the logits of the token
                before, in float32.
            logits_to_keep: logits of the last so many columns only; 0 for all.
            impl: implementation of decode attention in this call.
            subtree_end: ``[B, L]`` int32, rows of packed sequences that may share prefixes (see
                ``ridgeline.subtree_end``), without a cache. By default their positions follow from
                it. Padding stands right of a row's tokens.

        Raises:
            ValueError, TypeError: an argument has the wrong shape or value.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache if labels is None else False,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            impl=impl,
            subtree_end=subtree_end,
            return_dict=True,
        )
        # As transformers' slice_logits_to_keep, which came with 5.20: vLLM holds it below that.
        keep = logits_to_keep
        keep = slice(-keep, None) if isinstance(keep, int) else keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            check.shape("labels", labels, logits.shape[:2])
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )
