"""The numbers: arrays in, arrays out. No scikit-learn, no files, no cluster.

Each module uses only those above it:

============  ==================================================================
cache         where machine code is kept
compile       kernels, and vectors inside them
team          threads that share a kernel
parallel      threads, forks and BLAS around a kernel; shards
linalg        products and factorisations of a few vectors
kernels       how one item is solved, and all of them
passes        passes over whole arrays
plan          which path is cheapest for which item
sweep         one side: its entries and factors, and how a sweep solves them
ranking       the best columns of each row
start         nearly the dominant singular vectors
============  ==================================================================
"""
