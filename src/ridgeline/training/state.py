"""What a training step changes: weights, optimizer and the number of steps done."""

import math
from typing import Self

import torch
from tokenizers import Tokenizer

from ridgeline.models import RidgelineConfig, RidgelineForCausalLM
from ridgeline.training.checkpoint import Checkpoint
from ridgeline.training.config import TrainConfig
from ridgeline.training.data import batch
from ridgeline.training.evaluate import held_out_loss, precision, window_loss
from ridgeline.training.optimizer import load_state, make_optimizer, state_tensors
from ridgeline.training.schedule import learning_rate
from ridgeline.training.text import Text
from ridgeline.training.tokenizer import END_OF_TEXT


class TrainState:
    """A model on its way, float32, with all that its next step depends on."""

    def __init__(self, config: TrainConfig, text: Text) -> None:
        self.config = config
        self.text = text
        self.model = build_model(config, text.tokenizer).to(config.device)
        self.optimizer = make_optimizer(self.model, config.weight_decay)
        self.steps_done = 0

    @classmethod
    def of_checkpoint(cls, saved: Checkpoint, config: TrainConfig, text: Text) -> Self:
        """The state that ``snapshot`` saved.

        Raises:
            ValueError: the text is not the one it was trained on.
        """
        if saved.state["text_sha256"] != text.sha256:
            raise ValueError("texts: their content is not what the checkpoint was trained on")
        state = cls(config, text)
        with torch.no_grad():
            for name, parameter in state.model.named_parameters():
                parameter.copy_(saved.weights[name])
        tensors = dict(saved.optimizer)
        torch.set_rng_state(tensors.pop("rng"))
        load_state(state.model, state.optimizer, tensors)
        state.steps_done = saved.step
        return state

    def snapshot(self) -> Checkpoint:
        return Checkpoint(
            step=self.steps_done,
            weights={name: p.detach() for name, p in self.model.named_parameters()},
            optimizer=state_tensors(self.model, self.optimizer) | {"rng": torch.get_rng_state()},
            state={"config": self.config.to_dict(), "text_sha256": self.text.sha256},
            tokenizer=self.text.tokenizer.to_str(),
        )

    def next_rate(self) -> float:
        """The learning rate of the step to come."""
        c = self.config
        return learning_rate(
            self.steps_done, peak=c.lr, warmup=c.warmup, steps=c.steps, floor=c.lr_floor
        )

    def advance(self) -> tuple[float, float]:
        """One optimizer step: its loss (the mean over its windows) and its gradient's norm.

        Raises:
            ValueError: either is not finite; the weights are those before the step.
        """
        config = self.config
        self.model.train()
        self.optimizer.zero_grad()
        total = 0.0
        for part in range(config.grad_accum):
            rows = batch(
                self.text.train.tokens,
                seed=config.seed,
                index=self.steps_done * config.grad_accum + part,
                size=config.batch,
                context=config.context,
            )
            with precision(config.dtype, self.model.device):
                loss = window_loss(self.model, torch.from_numpy(rows))
            (loss / config.grad_accum).backward()
            total += loss.item() / config.grad_accum
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip).item()
        if not math.isfinite(total) or not math.isfinite(norm):
            raise ValueError(
                f"lr: the training diverged at step {self.steps_done + 1} (loss {total}, gradient "
                f"norm {norm}); a smaller peak than {config.lr:g} may help"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.next_rate()
        self.optimizer.step()
        self.steps_done += 1
        return total, norm

    def held_out_loss(self) -> float:
        """Loss on the held-out text, in nats a token."""
        config, tokens = self.config, self.text.held_out.tokens
        return held_out_loss(
            self.model, tokens, context=config.context, batch=config.batch, dtype=config.dtype
        )


def build_model(config: TrainConfig, tokenizer: Tokenizer) -> RidgelineForCausalLM:
    """The model with its first weights, float32; the seed decides them."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    torch.manual_seed(config.seed)
    model = RidgelineForCausalLM(
        RidgelineConfig(
            **config.model,
            vocab_size=tokenizer.get_vocab_size(),
            max_position_embeddings=config.context,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    for layer in model.model.layers:
        # Every block starts as the identity, which helps latent attention to train.
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            torch.nn.init.zeros_(projection.weight)
    return model
