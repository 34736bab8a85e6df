"""``ridgeline serve``: vLLM's own server, started with safe defaults."""
