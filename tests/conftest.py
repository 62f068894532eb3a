import os

# Must be set before SciPy is imported, or scikit-learn skips its check of array API input.
os.environ["SCIPY_ARRAY_API"] = "1"
