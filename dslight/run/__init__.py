"""What the verbs of the command line do: fit, evaluate, predict, plan, sweep. Each is a function that Python code
may call too.
"""
