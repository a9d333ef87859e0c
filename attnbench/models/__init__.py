"""TransNormerLLM and LLaMA at the papers' sizes: training steps, inference and loss curves, measured as models."""
