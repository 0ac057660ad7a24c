"""What files are made of, apart from what they mean: bytes become inert records, and nothing of a file is run.

`file` reads ranges of bytes, `pickle_reader` interprets pickles, `nvlabs` knows what a snapshot's pickle contains, and
`torch_legacy` the tensors in it. A fault of form is a PickleError; what records mean, `converter.snapshot` decides.
"""
