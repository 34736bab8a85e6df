"""``ridgeline bench serve``: models of equal size behind the engine's server, by its client."""
