"""All that there is to say of the package is in setup.cfg; this keeps builds out of the sources."""

import atexit
import shutil
import tempfile

from setuptools import setup

# What a build left in build/ would be installed again by the next, also what is gone by then.
folder = tempfile.mkdtemp()
atexit.register(shutil.rmtree, folder, ignore_errors=True)
setup(options={"build": {"build_base": folder}, "egg_info": {"egg_base": folder}})
