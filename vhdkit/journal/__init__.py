"""Side files: small files beside images that make a change of several steps restartable, and what machines claim."""
