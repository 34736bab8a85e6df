"""``--attention-backend RIDGELINE`` on a CPU, where vLLM ignores the option."""

from typing import Any

from vllm.platforms.interface import Platform


def honour_backend_option(platform: type[Platform]) -> None:
    """Have ``platform`` return Ridgeline's backend where the user chose it; once a process."""
    builtin = platform.get_attn_backend_cls.__func__
    if builtin is not _attn_backend_cls:
        _builtin[platform] = builtin
        platform.get_attn_backend_cls = classmethod(_attn_backend_cls)


_builtin: dict[type[Platform], Any] = {}


def _attn_backend_cls(
    cls: type[Platform],
    selected_backend: Any,
    attn_selector_config: Any,
    num_heads: int | None = None,
) -> str:
    if getattr(selected_backend, "name", None) == "RIDGELINE" and not attn_selector_config.use_mla:
        return selected_backend.get_path()
    return _builtin[cls](cls, selected_backend, attn_selector_config, num_heads)
