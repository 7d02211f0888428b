"""One update: the trained parameters, the loss, gradients, the optimizer."""
