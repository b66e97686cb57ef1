"""Batches on their way from the data processes to the training process, in shared memory."""
