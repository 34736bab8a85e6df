"""TRL's DPO trainer that computes every prompt once: change one import.

    from ridgeline.trl import PrefixSharedDPOConfig, PrefixSharedDPOTrainer

| module | what it holds |
|---|---|
| ``config`` | TRL's ``DPOConfig`` and three options |
| ``trainer`` | TRL's ``DPOTrainer`` on rows that share prompts |
| ``collator`` | a padded batch, and the rows that take its place |
| ``forward`` | hooks between TRL's call and the model: rows in, padded results out |
| ``datasets`` | preference data: what is refused, what is counted |
| ``probe`` | whether a model keeps the sequences of a row apart |
| ``rollouts`` | log-probabilities of G rollouts a prompt, for GRPO |
| ``command``, ``run_folder``, ``files``, ``plots`` | ``ridgeline dpo`` |
"""

from ridgeline.trl.config import PrefixSharedDPOConfig
from ridgeline.trl.rollouts import RolloutLogps, rollout_logps
from ridgeline.trl.trainer import PrefixSharedDPOTrainer

__all__ = ["PrefixSharedDPOConfig", "PrefixSharedDPOTrainer", "RolloutLogps", "rollout_logps"]
