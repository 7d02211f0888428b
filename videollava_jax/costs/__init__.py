"""The costs of the model's work, and the rates of chips: parameters, operations, bytes, rooflines."""
