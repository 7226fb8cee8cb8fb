"""How the embedded models are trained: ``python -m rarvision.embedded.training --out runs/embedded``."""
