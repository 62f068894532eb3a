import os

# Must be set before SciPy is imported, or scikit-learn skips its check of array API input.
os.environ["SCIPY_ARRAY_API"] = "1"
# And this before there are threads: that those of BLAS sleep while they wait. Where other programs
# run, threads that spin take several times as long as the work of these small problems.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

from hypothesis import settings

# What compiles in the first example is none the worse for it.
settings.register_profile("default", deadline=None)
settings.register_profile("long", deadline=None, max_examples=10_000)
settings.load_profile("default")
