"""The Transformer, its loss, optimizers and schedules: plain torch, trainable in a plain loop.

Nothing is imported here, so `model.config`, `model.optim.schedule` and `model.size` can be used without loading torch.
"""

__project__ = "manta"
