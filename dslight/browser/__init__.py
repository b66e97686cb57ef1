"""The page of ``dslight chat``: one or two models side by side, their stacks switched, their answers looked into."""
