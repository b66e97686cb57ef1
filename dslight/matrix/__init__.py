"""What of others works here: every kind of model that a library knows, tried tiny (``dslight models``)."""
