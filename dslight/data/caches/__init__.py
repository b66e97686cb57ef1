"""What is computed once and kept on disk: lengths and tokens beside the shards, features of a frozen encoder."""
