"""The operations, one folder each: ``api.py`` is public, ``op.py`` the torch.library op."""
