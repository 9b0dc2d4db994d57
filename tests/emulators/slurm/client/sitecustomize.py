"""For SkyPilot's processes: the controller of managed jobs asks the API server whether there is a network.

It would ask public addresses, and look at no job until one answers (_TEST_IP_LIST, SkyPilot 0.14.1; no setting).
"""

import importlib.abc
import importlib.machinery
import sys

MODULE = "sky.backends.backend_utils"


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            module._TEST_IP_LIST = ["http://127.0.0.1:46580/api/health"]

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
