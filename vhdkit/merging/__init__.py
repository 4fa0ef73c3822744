"""Folding layers into the one below them: plan, then do."""
