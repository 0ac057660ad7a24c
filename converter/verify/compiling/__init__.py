"""Programs compiled for accelerators that are not here, and what they would need there. Estimates, not measurements.

targets      what can be compiled for: devices.json, and TARGET as a person writes it
job          what is to be compiled, for the child process that does it (`worker`)
programs     the functions, and the shapes that they are compiled for
text         what a compiled program's text says: kernels, transposes, collectives, cycles
estimate     all of it together: the worker is run, and what it counts is held against the device
"""
