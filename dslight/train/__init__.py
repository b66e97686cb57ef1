"""What training adds to a model: optimizers per part, sharding, callbacks."""
