"""From a step number to samples: order, mixture, reading with replacement of bad samples, augmentation, instructions.

Everything here is a function of (seed, position in the data order); nothing keeps a state that a restart could lose. No
file imports torch.
"""
